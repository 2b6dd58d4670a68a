//! From a message's bytes to its increments: the decode plans of the writer schemas met so far, by
//! their ids.

mod unknown;

use std::time::Instant;

use tally_counts::Reject;
use tally_schemas::{Increment, Plan, wire};

use self::unknown::Unknown;
use crate::registry::{Error, Lookup, Registry};

/// Why a message was not decoded.
#[derive(Clone, Debug)]
pub enum Undecoded {
    /// Its schema is not known here yet: [`Plans::learn`] it first.
    AskRegistry,
    Refused(Refusal),
}

/// What a message holds besides its increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The id of the schema that it is written by.
    pub schema: u32,
    /// The id of the batch as a whole.
    pub batch_id: Option<&'a str>,
}

/// Why a message cannot be counted, and what exactly is wrong with it.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub reason: Reject,
    pub detail: String,
}

enum Known {
    Plan(Plan),
    /// A schema never changes under its id.
    Incompatible(Refusal),
}

pub struct Plans {
    registry: Registry,
    /// In order of the schemas' ids.
    known: Vec<(u32, Known)>,
    unknown: Unknown,
}

impl Plans {
    pub fn new(registry: Registry) -> Plans {
        Plans { registry, known: Vec::new(), unknown: Unknown::default() }
    }

    /// Asks the registry about the schema of this message.
    pub async fn learn(&mut self, payload: &[u8]) -> Result<(), Error> {
        let Ok((id, _)) = wire::split(payload) else { return Ok(()) };
        let incompatible = |detail: String| {
            let detail = format!("schema {id}: {detail}");
            Known::Incompatible(Refusal { reason: Reject::IncompatibleSchema, detail })
        };
        let known = match self.registry.schema(id).await? {
            Lookup::Unknown => {
                if let Ok(at) = self.find(id) {
                    self.known.remove(at);
                }
                self.unknown.add(id, Instant::now());
                return Ok(());
            }
            Lookup::NotAvro { reason } => incompatible(reason.to_owned()),
            Lookup::Found { schema } => match Plan::new(&schema) {
                Ok(plan) => Known::Plan(plan),
                Err(error) => incompatible(error.to_string()),
            },
        };
        self.unknown.remove(id);
        match self.find(id) {
            Ok(at) => self.known[at].1 = known,
            Err(at) => self.known.insert(at, (id, known)),
        }
        Ok(())
    }

    #[inline]
    fn find(&self, id: u32) -> Result<usize, usize> {
        self.known.binary_search_by_key(&id, |(known, _)| *known)
    }

    /// Decodes a message into `increments`, which is cleared first.
    #[inline]
    pub fn decode<'a>(
        &self,
        payload: &'a [u8],
        increments: &mut Vec<Increment<'a>>,
    ) -> Result<Decoded<'a>, Undecoded> {
        increments.clear();
        let refuse = |reason: Reject, detail: &dyn ToString| {
            Undecoded::Refused(Refusal { reason, detail: detail.to_string() })
        };
        let (id, body) = wire::split(payload).map_err(|error| refuse(Reject::NotFramed, &error))?;
        match self.find(id).map(|at| &self.known[at].1) {
            Ok(Known::Plan(plan)) => plan
                .decode_into(body, increments)
                .map(|message| Decoded { schema: id, batch_id: message.id })
                .map_err(|error| refuse(Reject::Undecodable, &format!("schema {id}: {error}"))),
            Ok(Known::Incompatible(refusal)) => Err(Undecoded::Refused(refusal.clone())),
            Err(_) if self.unknown.contains(id, Instant::now()) => {
                Err(refuse(Reject::UnknownSchema, &format!("the registry has no schema {id}")))
            }
            Err(_) => Err(Undecoded::AskRegistry),
        }
    }
}
