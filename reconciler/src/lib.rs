//! The reconciler: replays Kafka's messages through the same fold as the aggregator, and proves the
//! counts in ClickHouse against it.
//!
//! ```text
//!  a salt: drawn anew, or the key's own ──┬────────────────────┐
//!  ClickHouse ──one query──► ledger + fingerprints by range ───┼──────────────┐
//!  increments.rejected, all transactions ended ──► rejections ─┤              ▼
//!  increments ──[start, position)──► LogReader ────────────► Replay ──► equal, range by range?
//!                                                                 └─no─► narrow: which counters,
//!                                                                        from which batch on
//! ```
//!
//! It starts at the first message, or where a checkpoint, which an earlier verify signed, ends.
//! `watch` goes on where its last round ended.

mod checkpoint;
mod checkpoint_topic;
mod coverage;
mod error;
mod log_reader;
mod metrics;
mod narrow;
mod open_transactions;
mod partition_reader;
mod rejections;
mod replay;
mod report;
mod round;
mod scope;
mod verify;
mod watch;

pub use checkpoint_topic::export as export_checkpoints;
pub use error::Error;
pub use report::{CheckpointUse, Finding, Parting, PartitionReport, Report, Verdict};
pub use scope::Scope;
pub use verify::{VerifyOptions, verify};
pub use watch::watch;
