//! From a message to the sums, or to the rejected.

use std::time::Instant;

use tally_counts::Reject;
use tally_schemas::Increment;
use tally_service::kafka::Fetched;
use tally_service::plans::{Plans, Undecoded};
use tally_service::registry;
use tokio::runtime::Handle;

use crate::core::{Core, Rejected};

pub(crate) struct Folding {
    pub(crate) core: Core,
    plans: Plans,
    runtime: Handle,
    /// Room for one message's increments, empty between messages.
    increments: Vec<Increment<'static>>,
}

impl Folding {
    pub(crate) fn new(core: Core, plans: Plans, runtime: Handle) -> Folding {
        Folding { core, plans, runtime, increments: Vec::new() }
    }

    /// Counts or rejects a message. An error is the registry's, and the message is as if it never came.
    pub(crate) fn fold(&mut self, message: &Fetched<'_>, now: Instant) -> Result<(), registry::Error> {
        let &Fetched { partition, offset, key, payload } = message;
        let bytes = payload.unwrap_or(b"");
        let mut increments = reuse(std::mem::take(&mut self.increments));
        let decoded = match self.plans.decode(bytes, &mut increments) {
            Err(Undecoded::AskRegistry) => {
                self.runtime.block_on(self.plans.learn(bytes))?;
                self.plans.decode(bytes, &mut increments)
            }
            decoded => decoded,
        };
        let refused = match decoded {
            Ok(()) => match self.core.count(partition, offset, &increments, now) {
                Ok(()) => None,
                Err(reason) => Some((reason, describe(reason, &increments))),
            },
            Err(Undecoded::Refused(refusal)) => Some((refusal.reason, refusal.detail)),
            Err(Undecoded::AskRegistry) => unreachable!("the registry was asked just now"),
        };
        self.increments = reuse(increments);
        if let Some((reason, detail)) = refused {
            tracing::debug!(partition, offset, %reason, detail, "rejected");
            let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            let (key, payload) = (owned(key), owned(payload));
            self.core.reject(Rejected { partition, offset, reason, detail, key, payload }, now);
        }
        Ok(())
    }

    /// Asks the registry for the schema of a message that was not folded.
    pub(crate) fn learn(&mut self, payload: &[u8]) -> Result<(), registry::Error> {
        self.runtime.block_on(self.plans.learn(payload))
    }
}

/// The same allocation for the increments of another message.
fn reuse<'b>(mut buffer: Vec<Increment<'_>>) -> Vec<Increment<'b>> {
    buffer.clear();
    buffer.into_iter().map(|_| unreachable!("the buffer is empty")).collect()
}

/// Which increment a message was rejected for.
fn describe(reason: Reject, increments: &[Increment<'_>]) -> String {
    match increments {
        [only] => format!(
            "{reason}: namespace {:?}, key {:?}, delta {}, at {} ms",
            only.namespace, only.key, only.delta, only.at_ms
        ),
        many => format!("{reason} in a batch of {} increments", many.len()),
    }
}
