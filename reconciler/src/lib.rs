//! The reconciler: replays the log through the same fold as the aggregator, and proves the stored
//! counts against it.
//!
//! ```text
//!  store ──one query──► ledger position + fingerprint ─────────────────┐
//!  increments.rejected, settled ──► rejected offsets ───┐              ▼
//!  increments ──[0, position)──► Plans ─► Fold ─► fingerprint ──► equal, partition by partition?
//! ```

mod error;
mod rejected;
mod replay;
mod report;
mod settled;
mod verify;

pub use error::Error;
pub use report::{Finding, PartitionReport, Report};
pub use verify::verify;
