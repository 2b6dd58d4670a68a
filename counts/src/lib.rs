//! What a count is, without any I/O: time buckets, the ids that make a duplicate, the fold from
//! increments to deltas, the chain of offsets, the ledger that rides with the data, and the
//! fingerprint that compares two sets of counts.
//!
//! ```text
//! increments ──bucket──► Fold (Memory of ids + Sums + accounting) ──Flush──► deltas ──ledger::rows──► one block
//!                          │                                          └────► fingerprint
//!                          └──► Bookmark: where to read on from to remember the same ids
//! ```
//!
//! The aggregator, the sink, the reader and the reconciler all count with this crate, so that a
//! replay can be compared with what was stored.

mod bucket;
mod check;
mod fingerprint;
mod fold;
pub mod ledger;
mod memory;
mod offsets;
mod reject;
mod rules;
mod sums;

pub use bucket::BucketWidth;
pub use check::{NameError, Violation, check, check_name, check_namespace, check_size};
pub use fingerprint::{Fingerprint, Fingerprinter};
pub use fold::{Duplicates, Envelope, Flush, Fold};
pub use memory::{Bookmark, BookmarkParseError};
pub use offsets::{Chain, ChainError, Position, PositionParseError, StoredOffsets, next_offset};
pub use reject::Reject;
pub use rules::{Horizon, Rules, RulesParseError};
pub use sums::Sums;
