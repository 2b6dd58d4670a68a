//! From a message's bytes to its increments: the decode plans of the writer schemas met so far, by their ids.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tally_counts::Reject;
use tally_schemas::{Increment, Plan, wire};

use crate::registry::{Error, Lookup, Registry};

/// How long the registry's word that it has no such schema is believed.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);

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
    by_id: HashMap<u32, Known>,
}

impl Plans {
    pub fn new(registry: Registry) -> Plans {
        Plans { registry, by_id: HashMap::new() }
    }

    /// Whether [`Plans::decode`] can answer for this message without asking the registry.
    pub fn is_known(&self, payload: &[u8]) -> bool {
        match wire::split(payload) {
            Err(_) => true,
            Ok((id, _)) => match self.by_id.get(&id) {
                Some(Known::Unknown { since }) => since.elapsed() < UNKNOWN_FOR,
                Some(_) => true,
                None => false,
            },
        }
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
        self.by_id.insert(id, known);
        Ok(())
    }

    /// Decodes a message whose schema [is known](Plans::is_known) into `increments`, which is cleared first.
    ///
    /// # Panics
    /// If the message's schema was never asked for.
    pub fn decode<'a>(&self, payload: &'a [u8], increments: &mut Vec<Increment<'a>>) -> Result<(), Refusal> {
        increments.clear();
        let refuse = |reason: Reject, detail: &dyn ToString| Refusal { reason, detail: detail.to_string() };
        let (id, body) = wire::split(payload).map_err(|error| refuse(Reject::NotFramed, &error))?;
        match self.by_id.get(&id) {
            Some(Known::Plan(plan)) => plan
                .decode_into(body, increments)
                .map(drop)
                .map_err(|error| refuse(Reject::Undecodable, &format!("schema {id}: {error}"))),
            Some(Known::Incompatible(refusal)) => Err(refusal.clone()),
            Some(Known::Unknown { .. }) => {
                Err(refuse(Reject::UnknownSchema, &format!("the registry has no schema {id}")))
            }
            None => panic!("schema {id} was not asked for"),
        }
    }
}
