//! The texts of the schemas, and the registry subjects that hold them.

/// The text of `tally.Increment`.
pub const INCREMENT: &str = include_str!("../avro/increment.avsc").trim_ascii();
/// The text of `tally.IncrementBatch`, `tally.Increment` within.
pub const INCREMENT_BATCH: &str = include_str!("../avro/increment_batch.avsc").trim_ascii();
/// The text of `tally.DeltaBatch`, `tally.Delta` within.
pub const DELTA_BATCH: &str = include_str!("../avro/delta_batch.avsc").trim_ascii();

/// Where [`INCREMENT`] is registered: the subject that a serializer takes by default for the topic
/// `increments`.
pub const INCREMENT_SUBJECT: &str = "increments-value";
/// Where [`INCREMENT_BATCH`] is registered: its own name, as the topic's subject is
/// [`INCREMENT`]'s.
pub const INCREMENT_BATCH_SUBJECT: &str = "tally.IncrementBatch";
/// Where [`DELTA_BATCH`] is registered: the subject that a serializer takes by default for the
/// topic `deltas`.
pub const DELTA_BATCH_SUBJECT: &str = "deltas-value";
