//! What a count is, without any I/O: time buckets, the fold from increments to deltas, the chain of offsets,
//! the ledger that rides with the data, and the fingerprint that compares two sets of counts.
//!
//! ```text
//! increments ──bucket──► Fold (Sums + accounting) ──Flush──► deltas ──ledger::rows──► one block
//!                                                    └──────► fingerprint
//! ```
//!
//! The aggregator, the sink, the reader and the reconciler all count with this crate, so that a replay can be
//! compared with what was stored.

mod bucket;
mod fingerprint;
mod fold;
pub mod ledger;
mod offsets;
mod reject;
mod sums;

pub use bucket::BucketWidth;
pub use fingerprint::Fingerprint;
pub use fold::{Flush, Fold};
pub use offsets::{Chain, ChainError, Position, PositionParseError, next_offset};
pub use reject::Reject;
pub use sums::Sums;
