//! The reconciler: replays Kafka's messages through the same fold as the aggregator, and proves the
//! counts in ClickHouse against it.
//!
//! ```text
//!  ClickHouse ──one query──► ledger position + fingerprint ────────────────────┐
//!  increments.rejected, all transactions ended ──► reject reasons ──┐          ▼
//!  increments ──[0, position)──► PartitionReader ──────────────► Replay ──► equal, partition by
//!                                                                           partition?
//! ```

mod error;
mod open_transactions;
mod partition_reader;
mod reject_reasons;
mod replay;
mod report;
mod verify;

pub use error::Error;
pub use report::{Finding, PartitionReport, Report};
pub use verify::verify;
