//! What a count is, without any I/O: time buckets, the id memory that finds duplicates, the fold
//! from increments to deltas, the chain of offsets, the ledger that is stored in the same block as
//! the deltas, and the fingerprint that compares two sets of counts.
//!
//! ```text
//! increments ──check──► Fold (IdMemory, Sums, account) ──Flush──► deltas ──ledger::rows──► block
//!                         │                               └────► fingerprint
//!                         └──► Bookmark: where to begin reading to remember the same ids
//! ```
//!
//! The aggregator, the sink, the reader and the reconciler all count with this crate, so that a
//! replay can be compared with what was stored.

mod batch_check;
mod bucket;
mod check;
mod fingerprint;
mod fold;
mod id_memory;
mod keyed_fingerprint;
pub mod ledger;
mod offsets;
mod quick_fingerprint;
mod reject;
mod row_text;
mod rules;
mod sums;

pub use batch_check::{BatchCheck, BatchMismatch};
pub use bucket::BucketWidth;
pub use check::{NameError, Violation, check, check_name, check_namespace, check_size};
pub use fingerprint::{Fingerprint, FingerprintSum};
pub use fold::{CountedAs, Duplicates, Envelope, Flush, Fold};
pub use id_memory::{Bookmark, BookmarkParseError};
pub use keyed_fingerprint::{
    KeyedFingerprint, KeyedFingerprintSums, KeyedFingerprinter, KeyedRow, Salt,
};
pub use offsets::{
    ChainError, Position, PositionParseError, StoredOffsets, check_chain, next_offset,
};
pub use quick_fingerprint::QuickFingerprint;
pub use reject::Reject;
pub use rules::{Horizon, IdScope, Rules, RulesParseError};
pub use sums::Sums;
