//! What becomes of one message: it is decoded, then counted or rejected, or its ids are restored.

use std::time::{Duration, Instant};

use tally_counts::Reject;
use tally_kafka::FetchedMessage;
use tally_platform::plans::{Plans, Refusal, Undecoded, reuse};
use tally_platform::registry::Lookup;
use tally_schemas::{Increment, wire};

use crate::partitions::Partitions;
use crate::rejected_record::rejected;

/// A message must be read again once its schema is there: nothing has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SchemaMissing {
    pub(crate) schema: u32,
}

pub(crate) struct MessageFold {
    plans: Plans,
    /// A buffer for one message's increments, empty between messages.
    increments: Vec<Increment<'static>>,
}

impl MessageFold {
    pub(crate) fn new(plans: Plans) -> MessageFold {
        MessageFold { plans, increments: Vec::new() }
    }

    /// Counts or rejects a message, or restores its ids if it was counted or rejected before.
    pub(crate) fn fold(
        &mut self,
        partitions: &mut Partitions,
        message: &FetchedMessage<'_>,
        now: Instant,
    ) -> Result<(), SchemaMissing> {
        let &FetchedMessage { partition, offset, timestamp_ms, payload, .. } = message;
        let bytes = payload.unwrap_or(b"");
        if partitions.is_to_restore(partition, offset) {
            return self.restore(partitions, message, bytes, now);
        }
        let mut increments = reuse(std::mem::take(&mut self.increments));
        let refused = match self.plans.decode(message, &mut increments) {
            Ok(decoded) => {
                let envelope = decoded.envelope(offset, timestamp_ms);
                match partitions.count(partition, &envelope, &increments, now) {
                    Ok(()) => None,
                    Err(reason) => {
                        let unit = |at| partitions.rules().seeming_unit(at, envelope.timestamp_ms);
                        Some((reason, describe(reason, &increments, unit)))
                    }
                }
            }
            Err(Undecoded::Refused(Refusal { reason, detail })) => Some((reason, detail)),
            Err(Undecoded::AskRegistry(schema)) => return Err(SchemaMissing { schema }),
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
    ) -> Result<(), SchemaMissing> {
        let &FetchedMessage { partition, offset, timestamp_ms, .. } = message;
        if partitions.was_unread(partition, offset, bytes) {
            partitions.pass_over(partition, offset, Reject::UnknownSchema, bytes, now);
            return Ok(());
        }
        let mut increments = reuse(std::mem::take(&mut self.increments));
        match self.plans.decode(message, &mut increments) {
            Ok(decoded) => {
                partitions.remember(
                    partition,
                    &decoded.envelope(offset, timestamp_ms),
                    &increments,
                    now,
                );
            }
            Err(Undecoded::AskRegistry(schema)) => return Err(SchemaMissing { schema }),
            Err(Undecoded::Refused(Refusal { reason, .. })) => {
                if let (true, Ok((schema, _))) = (reason.is_of_schema(), wire::split(bytes)) {
                    if partitions.waits_for_gone(partition, now) {
                        return Err(SchemaMissing { schema });
                    }
                    partitions.miss(partition, offset, schema);
                }
                partitions.pass_over(partition, offset, reason, bytes, now);
            }
        }
        self.increments = reuse(increments);
        Ok(())
    }

    /// Notes what the registry said of a schema.
    pub(crate) fn learn(&mut self, schema: u32, said: Lookup) {
        self.plans.learn(schema, said);
    }

    /// Whether what the registry said of a schema is enough to judge its messages.
    pub(crate) fn is_judged(&self, schema: u32) -> bool {
        self.plans.is_known(schema)
    }

    /// Whether messages of the schema are rejected.
    pub(crate) fn is_refused(&self, schema: u32) -> bool {
        self.plans.is_refused(schema)
    }

    /// How long to wait before the registry is asked for a schema.
    pub(crate) fn pause(&self, schema: u32) -> Duration {
        self.plans.pause(schema)
    }

    /// The schema of a message, if the registry has to be asked for it.
    pub(crate) fn to_ask(&self, message: &FetchedMessage<'_>) -> Option<u32> {
        self.plans.to_ask(message)
    }
}

/// The detail of a rejection that has none of its own; `unit` tells which unit a time seems to be
/// in that is not in milliseconds.
fn describe(
    reason: Reject,
    increments: &[Increment<'_>],
    unit: impl FnOnce(i64) -> Option<&'static str>,
) -> String {
    match increments {
        [only] => format!(
            "{reason}: namespace {:?}, key {:?}, delta {}, at {} ms{}",
            only.namespace,
            only.key,
            only.delta,
            only.at_ms,
            match unit(only.at_ms) {
                Some(unit) if reason == Reject::EventTimeOutOfRange => format!(" ({unit}?)"),
                _ => String::new(),
            }
        ),
        many => format!("{reason} in a batch of {} increments", many.len()),
    }
}
