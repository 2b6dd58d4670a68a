//! From a message's bytes to its increments: the decode plans of the writer schemas met so far, by
//! their ids in the schema registry.
//!
//! ```text
//!  payload ─► schema id ─► plan ─► increments, or a refusal
//!                 └─ not known here ─► learn: ask the registry ─► plan, incompatible or unknown
//! ```

mod unknown_ids;

use std::time::{Duration, Instant};

use tally_counts::{Envelope, Fold, Reject};
use tally_kafka::{FetchedMessage, Unfit};
use tally_schemas::{Increment, Plan, wire};
use tokio::runtime::Handle;

use self::unknown_ids::UnknownIds;
use crate::registry::{Error, Lookup, Registry};

/// Why a message was not decoded.
#[derive(Clone, Debug)]
pub enum Undecoded {
    /// The schema with this id is not known here yet: ask the registry, tell [`Plans::learn`] what
    /// it says, then decode the message again.
    AskRegistry(u32),
    Refused(Refusal),
}

/// What a message holds besides its increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The registry's id of the writer schema.
    pub schema: u32,
    /// The id of the whole batch, by which all of it counts once.
    pub batch_id: Option<&'a str>,
}

impl<'a> Decoded<'a> {
    /// What the fold needs to know of the message at this offset, by Kafka's time of it.
    #[inline]
    pub fn envelope(self, offset: i64, timestamp_ms: Option<i64>) -> Envelope<'a> {
        let Decoded { schema, batch_id } = self;
        Envelope { offset, timestamp_ms, schema, batch_id }
    }
}

/// Why a message cannot be counted, and what exactly is wrong with it.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub reason: Reject,
    pub detail: String,
}

/// What the registry's schema of an id came to. A schema never changes under its id.
enum KnownSchema {
    Plan(Plan),
    Incompatible(Refusal),
}

/// The decode plans of all writer schemas met so far.
pub struct Plans {
    registry: Registry,
    /// Sorted by schema id.
    known: Vec<(u32, KnownSchema)>,
    unknown: UnknownIds,
}

impl Plans {
    pub fn new(registry: Registry) -> Plans {
        Plans { registry, known: Vec::new(), unknown: UnknownIds::default() }
    }

    /// Notes what the registry said of the schema with this id.
    pub fn learn(&mut self, id: u32, said: Lookup) {
        let incompatible = |detail: String| {
            let detail = format!("schema {id}: {detail}");
            KnownSchema::Incompatible(Refusal { reason: Reject::IncompatibleSchema, detail })
        };
        let known = match said {
            Lookup::Unknown => {
                if let Ok(at) = self.find(id) {
                    self.known.remove(at);
                }
                self.unknown.add(id, Instant::now());
                return;
            }
            Lookup::NotAvro { reason } => incompatible(reason),
            Lookup::Found { schema, references } => {
                match Plan::with_references(&schema, references.iter().map(String::as_str)) {
                    Ok(plan) => KnownSchema::Plan(plan),
                    Err(error) => incompatible(error.to_string()),
                }
            }
        };
        self.unknown.remove(id);
        match self.find(id) {
            Ok(at) => self.known[at].1 = known,
            Err(at) => self.known.insert(at, (id, known)),
        }
    }

    #[inline]
    fn find(&self, id: u32) -> Result<usize, usize> {
        self.known.binary_search_by_key(&id, |(known, _)| *known)
    }

    /// Decodes a message as [`Plans::decode`] does. Where its schema is not known here, asks the
    /// registry, which blocks the thread, and decodes again.
    #[inline]
    pub fn decode_or_learn<'a>(
        &mut self,
        runtime: &Handle,
        message: &FetchedMessage<'a>,
        increments: &mut Vec<Increment<'a>>,
    ) -> Result<Result<Decoded<'a>, Refusal>, Error> {
        // The answer that a schema is unknown has to come twice, and is believed for a while only.
        loop {
            match self.decode(message, increments) {
                Ok(decoded) => return Ok(Ok(decoded)),
                Err(Undecoded::Refused(refusal)) => return Ok(Err(refusal)),
                Err(Undecoded::AskRegistry(id)) => {
                    let pause = self.pause(id);
                    let said = runtime.block_on(async {
                        tokio::time::sleep(pause).await;
                        self.registry.schema(id).await
                    });
                    self.learn(id, said?);
                }
            }
        }
    }

    /// Whether messages of the schema with this id cannot be read, by what the registry said last.
    pub fn is_refused(&self, id: u32) -> bool {
        self.is_known(id)
            && !matches!(self.find(id).map(|at| &self.known[at].1), Ok(KnownSchema::Plan(_)))
    }

    /// Whether messages of the schema with this id can be read or refused, without a question to
    /// the registry.
    pub fn is_known(&self, id: u32) -> bool {
        self.find(id).is_ok() || is_beyond(id) || self.unknown.is_believed(id, Instant::now())
    }

    /// How long to wait before the registry is asked for the schema with this id: a while, if it
    /// has just said that the id is not there.
    pub fn pause(&self, id: u32) -> Duration {
        self.unknown.pause(id, Instant::now())
    }

    /// The id of a message's schema, if the registry has to be asked for it.
    pub fn to_ask(&self, message: &FetchedMessage<'_>) -> Option<u32> {
        let (id, _) = wire::split(message.payload?).ok()?;
        (message.unfit.is_none() && !self.is_known(id)).then_some(id)
    }

    /// Decodes a message into `increments`, which is cleared first.
    #[inline]
    pub fn decode<'a>(
        &self,
        message: &FetchedMessage<'a>,
        increments: &mut Vec<Increment<'a>>,
    ) -> Result<Decoded<'a>, Undecoded> {
        increments.clear();
        let refuse = |reason: Reject, detail: &dyn ToString| {
            Undecoded::Refused(Refusal { reason, detail: detail.to_string() })
        };
        if let Some(unfit) = message.unfit {
            return Err(Undecoded::Refused(refused_as(unfit)));
        }
        let payload = message.payload.unwrap_or(b"");
        let (id, body) = wire::split(payload).map_err(|error| refuse(Reject::NotFramed, &error))?;
        match self.find(id).map(|at| &self.known[at].1) {
            Ok(KnownSchema::Plan(plan)) => {
                const MOST: usize = Fold::MAX_MESSAGE_INCREMENTS;
                let message = plan.decode_up_to(MOST, body, increments).map_err(|error| {
                    refuse(Reject::Undecodable, &format!("schema {id}: {error}"))
                })?;
                if message.increments > MOST as u64 {
                    increments.clear();
                    let detail = format!("{} increments, {MOST} at most", message.increments);
                    return Err(refuse(Reject::TooLarge, &detail));
                }
                Ok(Decoded { schema: id, batch_id: message.id })
            }
            Ok(KnownSchema::Incompatible(refusal)) => Err(Undecoded::Refused(refusal.clone())),
            Err(_) if is_beyond(id) => {
                let detail = format!("schema ids go up to {}, this is {id}", i32::MAX);
                Err(refuse(Reject::UnknownSchema, &detail))
            }
            Err(_) if self.unknown.is_believed(id, Instant::now()) => {
                Err(refuse(Reject::UnknownSchema, &format!("the registry has no schema {id}")))
            }
            Err(_) => Err(Undecoded::AskRegistry(id)),
        }
    }
}

/// The refusal of a message that is not to be decoded.
#[cold]
fn refused_as(unfit: Unfit) -> Refusal {
    let (reason, detail) = match unfit {
        Unfit::BatchTooLarge => {
            const MOST: usize = FetchedMessage::MAX_BATCH_BYTES;
            let detail = format!("its batch is more than {MOST} bytes once it is decompressed");
            (Reject::TooLarge, detail)
        }
        Unfit::SchemaInHeader => {
            const HEADER: &str = FetchedMessage::SCHEMA_HEADER;
            let detail = format!(
                "its schema's GUID is in the header {HEADER}, and no schema id stands before its \
                 body: let the serializer put the id there (with Confluent's, \
                 value.schema.id.serializer = PrefixSchemaIdSerializer)"
            );
            (Reject::NotFramed, detail)
        }
    };
    Refusal { reason, detail }
}

/// Whether an id is none that a registry gives: there they are signed numbers of 32 bits.
fn is_beyond(id: u32) -> bool {
    i32::try_from(id).is_err()
}

/// Empties the buffer, so that it can hold another message's increments in the same allocation.
pub fn reuse<'b>(mut buffer: Vec<Increment<'_>>) -> Vec<Increment<'b>> {
    buffer.clear();
    buffer.into_iter().map(|_| unreachable!("the buffer is empty")).collect()
}
