//! From a message's bytes to its increments: the decode plans of the writer schemas met so far, by
//! their ids in the schema registry.
//!
//! ```text
//!  payload ─► schema id ─► plan ─► increments, or a refusal
//!                 └─ not known here ─► learn: ask the registry ─► plan, incompatible or unknown
//! ```

mod unknown_ids;

use std::time::Instant;

use tally_counts::{Envelope, Fold, Reject};
use tally_kafka::FetchedMessage;
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
            Lookup::NotAvro { reason } => incompatible(reason.to_owned()),
            Lookup::Found { schema } => match Plan::new(&schema) {
                Ok(plan) => KnownSchema::Plan(plan),
                Err(error) => incompatible(error.to_string()),
            },
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
        // A process that was paused in between has to ask twice: the answer that a schema is
        // unknown is believed for a few seconds only.
        loop {
            match self.decode(message, increments) {
                Ok(decoded) => return Ok(Ok(decoded)),
                Err(Undecoded::Refused(refusal)) => return Ok(Err(refusal)),
                Err(Undecoded::AskRegistry(id)) => {
                    let said = runtime.block_on(self.registry.schema(id))?;
                    self.learn(id, said);
                }
            }
        }
    }

    /// Whether messages of the schema with this id cannot be read, by what the registry said last.
    pub fn is_refused(&self, id: u32) -> bool {
        match self.find(id).map(|at| &self.known[at].1) {
            Ok(KnownSchema::Plan(_)) => false,
            Ok(KnownSchema::Incompatible(_)) => true,
            Err(_) => self.unknown.contains(id, Instant::now()),
        }
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
        if message.is_left_out {
            const MOST: usize = FetchedMessage::MAX_BATCH_BYTES;
            let detail = format!("its batch is more than {MOST} bytes once it is decompressed");
            return Err(refuse(Reject::TooLarge, &detail));
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
            Err(_) if self.unknown.contains(id, Instant::now()) => {
                Err(refuse(Reject::UnknownSchema, &format!("the registry has no schema {id}")))
            }
            Err(_) => Err(Undecoded::AskRegistry(id)),
        }
    }
}

/// Empties the buffer, so that it can hold another message's increments in the same allocation.
pub fn reuse<'b>(mut buffer: Vec<Increment<'_>>) -> Vec<Increment<'b>> {
    buffer.clear();
    buffer.into_iter().map(|_| unreachable!("the buffer is empty")).collect()
}
