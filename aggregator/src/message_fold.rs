//! What becomes of one message: it is decoded, then counted or rejected, or its ids are restored.

use std::time::Instant;

use tally_counts::Reject;
use tally_kafka::FetchedMessage;
use tally_platform::plans::{Plans, Refusal, Undecoded, reuse};
use tally_platform::registry;
use tally_schemas::Increment;
use tokio::runtime::Handle;

use crate::partitions::Partitions;
use crate::rejected_record::rejected;

/// Why a message must be read again later: nothing has become of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The message was decoded when it was counted, so its schema was in the registry then.
    #[error("the ids of a message cannot be restored, since its schema is gone: {}", .0.detail)]
    SchemaGone(Refusal),
}

pub(crate) struct MessageFold {
    plans: Plans,
    runtime: Handle,
    /// A buffer for one message's increments, empty between messages.
    increments: Vec<Increment<'static>>,
}

impl MessageFold {
    pub(crate) fn new(plans: Plans, runtime: Handle) -> MessageFold {
        MessageFold { plans, runtime, increments: Vec::new() }
    }

    /// Counts or rejects a message, or restores its ids if it was counted or rejected before.
    pub(crate) fn fold(
        &mut self,
        partitions: &mut Partitions,
        message: &FetchedMessage<'_>,
        now: Instant,
    ) -> Result<(), Error> {
        let &FetchedMessage { partition, offset, timestamp_ms, payload, .. } = message;
        let bytes = payload.unwrap_or(b"");
        if partitions.is_to_restore(partition, offset) {
            return self.restore(partitions, message, bytes, now);
        }
        let mut increments = reuse(std::mem::take(&mut self.increments));
        let refused = match self.plans.decode_or_learn(&self.runtime, message, &mut increments)? {
            Ok(decoded) => {
                let envelope = decoded.envelope(offset, timestamp_ms);
                match partitions.count(partition, &envelope, &increments, now) {
                    Ok(()) => None,
                    Err(reason) => Some((reason, describe(reason, &increments))),
                }
            }
            Err(refusal) => Some((refusal.reason, refusal.detail)),
        };
        self.increments = reuse(increments);
        if let Some((reason, detail)) = refused {
            let rejected = rejected(message, reason, detail);
            tracing::debug!(partition, offset, %reason, rejected.detail, "rejected");
            partitions.reject(rejected, bytes, now);
        }
        Ok(())
    }

    /// Restores the ids of a message that was counted or rejected before.
    fn restore(
        &mut self,
        partitions: &mut Partitions,
        message: &FetchedMessage<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Error> {
        let &FetchedMessage { partition, offset, timestamp_ms, .. } = message;
        if partitions.was_unread(partition, offset, bytes) {
            partitions.pass_over(partition, offset, Reject::UnknownSchema, bytes, now);
            return Ok(());
        }
        let mut increments = reuse(std::mem::take(&mut self.increments));
        match self.plans.decode_or_learn(&self.runtime, message, &mut increments)? {
            Ok(decoded) => {
                partitions.remember(
                    partition,
                    &decoded.envelope(offset, timestamp_ms),
                    &increments,
                    now,
                );
            }
            Err(refusal) if is_schema_gone(partitions, partition, &refusal) => {
                return Err(Error::SchemaGone(refusal));
            }
            Err(refusal) => partitions.pass_over(partition, offset, refusal.reason, bytes, now),
        }
        self.increments = reuse(increments);
        Ok(())
    }

    /// Asks the registry for the schema that a partition waits for. `prefix` holds the bytes before
    /// the body of the message that is next; an error says why it still cannot be folded.
    pub(crate) fn learn(
        &mut self,
        partitions: &Partitions,
        partition: i32,
        prefix: &[u8],
    ) -> Result<(), Error> {
        self.runtime.block_on(self.plans.learn(prefix))?;
        match self.plans.decode(prefix, &mut Vec::new()) {
            Err(Undecoded::Refused(refusal)) if is_schema_gone(partitions, partition, &refusal) => {
                Err(Error::SchemaGone(refusal))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the bookmark says that the message was decoded once, and its schema is not there now.
fn is_schema_gone(partitions: &Partitions, partition: i32, refusal: &Refusal) -> bool {
    refusal.reason.is_of_schema() && partitions.restores_by_bookmark(partition)
}

/// The detail of a rejection that has none of its own.
fn describe(reason: Reject, increments: &[Increment<'_>]) -> String {
    match increments {
        [only] => format!(
            "{reason}: namespace {:?}, key {:?}, delta {}, at {} ms",
            only.namespace, only.key, only.delta, only.at_ms
        ),
        many => format!("{reason} in a batch of {} increments", many.len()),
    }
}
