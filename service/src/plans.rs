//! From a message's bytes to its increments: the decode plans of the writer schemas met so far, by their ids.

use std::time::{Duration, Instant};

use tally_counts::Reject;
use tally_schemas::{Increment, Plan, wire};

use crate::registry::{Error, Lookup, Registry};

/// How long the registry's word that it has no such schema is believed.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);

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
    Unknown {
        since: Instant,
    },
}

pub struct Plans {
    registry: Registry,
    /// By schema id: so few that looking through them is faster than hashing.
    known: Vec<(u32, Known)>,
}

impl Plans {
    pub fn new(registry: Registry) -> Plans {
        Plans { registry, known: Vec::new() }
    }

    /// Asks the registry about the schema of this message.
    pub async fn learn(&mut self, payload: &[u8]) -> Result<(), Error> {
        let Ok((id, _)) = wire::split(payload) else { return Ok(()) };
        let incompatible = |detail: String| {
            let detail = format!("schema {id}: {detail}");
            Known::Incompatible(Refusal { reason: Reject::IncompatibleSchema, detail })
        };
        let known = match self.registry.schema(id).await? {
            Lookup::Unknown => Known::Unknown { since: Instant::now() },
            Lookup::NotAvro { reason } => incompatible(reason.to_owned()),
            Lookup::Found { schema } => match Plan::new(&schema) {
                Ok(plan) => Known::Plan(plan),
                Err(error) => incompatible(error.to_string()),
            },
        };
        self.known.retain(|(other, _)| *other != id);
        self.known.push((id, known));
        Ok(())
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
        match self.known.iter().find(|(known, _)| *known == id) {
            Some((_, Known::Plan(plan))) => plan
                .decode_into(body, increments)
                .map(|message| Decoded { schema: id, batch_id: message.id })
                .map_err(|error| refuse(Reject::Undecodable, &format!("schema {id}: {error}"))),
            Some((_, Known::Incompatible(refusal))) => Err(Undecoded::Refused(refusal.clone())),
            Some((_, Known::Unknown { since })) if since.elapsed() < UNKNOWN_FOR => {
                Err(refuse(Reject::UnknownSchema, &format!("the registry has no schema {id}")))
            }
            Some((_, Known::Unknown { .. })) | None => Err(Undecoded::AskRegistry),
        }
    }
}
