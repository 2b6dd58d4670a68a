//! Reads increments by the schema of whoever wrote them, by Avro's rules of schema resolution
//! (specification 1.12, "Schema Resolution").
//!
//! ```text
//!  once for each writer schema                              for each message
//!  schema text ─► schema: nodes ─► resolve: steps ─► Plan ─► run: body ─► Increment… (zero-copy)
//!                                                               └─► skip: fields that are not ours
//! ```
//!
//! A plan is a list of steps in the order of the writer's fields: read into one of our fields, or
//! skip. What the rules can decide without a message (a missing field, a type that cannot be
//! promoted) fails when the plan is made.

mod error;
mod resolve;
mod run;
pub(crate) mod schema;
mod skip;
#[cfg(test)]
mod tests;

pub use error::PlanError;

use crate::{DecodeError, Increment, Message};
use resolve::{BatchSteps, IncrementSteps};
use schema::Schema;

/// How to decode the messages of one writer schema.
pub struct Plan {
    writer: Schema,
    record: RecordSteps,
}

enum RecordSteps {
    Increment(IncrementSteps),
    Batch(BatchSteps),
}

/// Which of our records a writer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// Each message is one `Increment`.
    Increment,
    /// Each message is one `IncrementBatch`.
    IncrementBatch,
}

impl Plan {
    /// Resolves a writer's schema against `tally.Increment` or `tally.IncrementBatch`, whichever
    /// its record's name says; as everywhere in Avro's rules, the namespace does not matter.
    ///
    /// Where the rules leave room:
    /// - `at` as `timestamp-micros` or `-nanos` is converted to milliseconds, rounding down (by the
    ///   bare rules the raw number would be taken, a thousand or a million times too large); a
    ///   local timestamp is taken as UTC; a date or a time of day is refused, as it names no
    ///   moment.
    /// - A writer's union is accepted if any of its branches fits; a message that uses another
    ///   branch is an error.
    pub fn new(writer_schema: &str) -> Result<Plan, PlanError> {
        Plan::with_references(writer_schema, [])
    }

    /// As [`Plan::new`], for a schema that uses the names of others. Each of `references` uses
    /// names of itself and of the ones before it only.
    pub fn with_references<'t>(
        writer_schema: &str,
        references: impl IntoIterator<Item = &'t str>,
    ) -> Result<Plan, PlanError> {
        let writer = Schema::parse(writer_schema, references)?;
        let record = resolve::record(&writer)?;
        Ok(Plan { writer, record })
    }

    pub fn message_type(&self) -> MessageType {
        match self.record {
            RecordSteps::Increment(_) => MessageType::Increment,
            RecordSteps::Batch(_) => MessageType::IncrementBatch,
        }
    }

    /// Calls `each` for every increment in order.
    ///
    /// A message counts as a whole or not at all, but an error may come after `each` was called:
    /// then the caller must forget what it was given. [`Plan::decode_into`] does that.
    pub fn decode<'a>(
        &self,
        body: &'a [u8],
        each: impl FnMut(Increment<'a>),
    ) -> Result<Message<'a>, DecodeError> {
        match &self.record {
            RecordSteps::Increment(steps) => run::single(steps, &self.writer, body, each),
            RecordSteps::Batch(steps) => run::batch(steps, &self.writer, body, each),
        }
    }

    /// Appends all increments to `increments`, or none and returns the error.
    pub fn decode_into<'a>(
        &self,
        body: &'a [u8],
        increments: &mut Vec<Increment<'a>>,
    ) -> Result<Message<'a>, DecodeError> {
        self.decode_up_to(usize::MAX, body, increments)
    }

    /// As [`Plan::decode_into`], but keeps no more than `most` increments in all, so that a message
    /// of many takes little memory. All are read, and the message says how many there are.
    #[inline]
    pub fn decode_up_to<'a>(
        &self,
        most: usize,
        body: &'a [u8],
        increments: &mut Vec<Increment<'a>>,
    ) -> Result<Message<'a>, DecodeError> {
        let before = increments.len();
        let decoded = self.decode(body, |increment| {
            if increments.len() < most {
                increments.push(increment);
            }
        });
        if decoded.is_err() {
            increments.truncate(before);
        }
        decoded
    }
}
