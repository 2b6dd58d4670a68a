//! From a message to the sums, or to the rejected.

use std::time::Instant;

use tally_counts::{Envelope, Reject};
use tally_kafka::FetchedMessage;
use tally_platform::plans::{Decoded, Plans, Refusal, Undecoded};
use tally_platform::registry;
use tally_schemas::Increment;
use tokio::runtime::Handle;

use crate::core::{Core, Rejected};
use crate::rejection::short;

/// Why a message is as if it never came: it must come again later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// It was read when its ids were noted, so its schema is or was there.
    #[error("its ids were remembered once and cannot be now: {}", .0.detail)]
    Unreadable(Refusal),
}

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

    /// Counts or rejects a message.
    pub(crate) fn fold(&mut self, message: &FetchedMessage<'_>, now: Instant) -> Result<(), Error> {
        let &FetchedMessage { partition, offset, key, payload, .. } = message;
        let bytes = payload.unwrap_or(b"");
        if self.core.is_before_fold(partition, offset) {
            return self.remember(message, bytes, now);
        }
        let mut increments = reuse(std::mem::take(&mut self.increments));
        let refused = match self.decode(bytes, &mut increments)? {
            Ok(decoded) => {
                match self.core.count(partition, &envelope(message, decoded), &increments, now) {
                    Ok(()) => None,
                    Err(reason) => Some((reason, describe(reason, &increments))),
                }
            }
            Err(refusal) => Some((refusal.reason, refusal.detail)),
        };
        self.increments = reuse(increments);
        if let Some((reason, detail)) = refused {
            let detail = short(detail);
            tracing::debug!(partition, offset, %reason, detail, "rejected");
            let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            let (key, payload) = (owned(key), owned(payload));
            self.core.reject(Rejected { partition, offset, reason, detail, key, payload }, now);
        }
        Ok(())
    }

    /// Remembers the ids of a message that is counted or rejected already.
    fn remember(
        &mut self,
        message: &FetchedMessage<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Error> {
        let &FetchedMessage { partition, offset, .. } = message;
        if self.core.was_unread(partition, offset, bytes) {
            self.core.pass_over(partition, offset, Reject::UnknownSchema, bytes, now);
            return Ok(());
        }
        let mut increments = reuse(std::mem::take(&mut self.increments));
        match self.decode(bytes, &mut increments)? {
            Ok(decoded) => {
                self.core.remember(partition, &envelope(message, decoded), &increments, now);
            }
            Err(refusal) if refusal.reason.is_of_schema() && self.core.knows_unread(partition) => {
                return Err(Error::Unreadable(refusal));
            }
            Err(refusal) => self.core.pass_over(partition, offset, refusal.reason, bytes, now),
        }
        self.increments = reuse(increments);
        Ok(())
    }

    #[inline]
    fn decode<'a>(
        &mut self,
        bytes: &'a [u8],
        increments: &mut Vec<Increment<'a>>,
    ) -> Result<Result<Decoded<'a>, Refusal>, registry::Error> {
        // A process that was stopped in between may have to ask twice: that a schema is unknown is
        // not believed for long.
        loop {
            match self.plans.decode(bytes, increments) {
                Ok(decoded) => return Ok(Ok(decoded)),
                Err(Undecoded::Refused(refusal)) => return Ok(Err(refusal)),
                Err(Undecoded::AskRegistry) => self.runtime.block_on(self.plans.learn(bytes))?,
            }
        }
    }

    /// Asks the registry for the schema of a message of the partition that was not folded; an error
    /// if it would not be yet.
    pub(crate) fn learn(&mut self, partition: i32, prefix: &[u8]) -> Result<(), Error> {
        self.runtime.block_on(self.plans.learn(prefix))?;
        match self.plans.decode(prefix, &mut Vec::new()) {
            Err(Undecoded::Refused(refusal))
                if refusal.reason.is_of_schema() && self.core.knows_unread(partition) =>
            {
                Err(Error::Unreadable(refusal))
            }
            _ => Ok(()),
        }
    }
}

fn envelope<'a>(message: &FetchedMessage<'_>, decoded: Decoded<'a>) -> Envelope<'a> {
    let Decoded { schema, batch_id } = decoded;
    Envelope { offset: message.offset, timestamp_ms: message.timestamp_ms, schema, batch_id }
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
