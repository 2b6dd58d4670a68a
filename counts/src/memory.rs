//! The ids of a partition that are remembered: an id that is remembered and comes again is a
//! duplicate.
//!
//! ```text
//!  offset o ──► see(id) ──► Recent: ids by when they were seen last ──evicts──► beyond max_ids, or before o − horizon
//!                  └──► was it there?          │ oldest
//!  rejected for its schema ──► Unread: gaps    ▼
//!                                 └───► Bookmark ──committed with the offset──► rebuilt by reading [oldest, o) again
//! ```
//!
//! What is remembered at an offset is a function of the log before it, and of which schemas the
//! registry knew when each message was read: of the distinct ids that occurred within the horizon
//! in messages whose schema was known, those that were seen last. Which messages those are not,
//! Unread tells. So whoever reads from the oldest id on and passes over the unread remembers the
//! same, and the log and what was committed with its offsets are the only places where it is kept.

mod bookmark;
mod recent;
#[cfg(test)]
mod tests;
mod unread;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use self::recent::Recent;
use self::unread::Unread;
use crate::Horizon;

pub use bookmark::{Bookmark, BookmarkParseError};

/// An id's fingerprint. Ids of increments and ids of batches are different ids, though they be
/// spelled the same.
///
/// Two ids that share one make a duplicate of what is none: with 10⁶ remembered, one in 3·10³² ids
/// that come. The hash has no secret; who makes two ids collide could as well have sent the same id
/// twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(u128);

impl Id {
    const INCREMENT_SEED: u64 = 1;
    const BATCH_SEED: u64 = 2;

    pub(crate) fn of_increment(id: &str) -> Id {
        Id(xxh3_128_with_seed(id.as_bytes(), Self::INCREMENT_SEED))
    }

    pub(crate) fn of_batch(id: &str) -> Id {
        Id(xxh3_128_with_seed(id.as_bytes(), Self::BATCH_SEED))
    }
}

/// The ids of one partition.
pub(crate) struct Memory {
    horizon: Horizon,
    recent: Recent,
    unread: Unread,
}

impl Memory {
    pub(crate) fn new(horizon: Horizon) -> Memory {
        Memory { horizon, recent: Recent::new(horizon.ids), unread: Unread::default() }
    }

    /// Begins again where a bookmark was put in: what follows must be what follows it in the log.
    pub(crate) fn resume(horizon: Horizon, bookmark: &Bookmark) -> Memory {
        Memory { unread: Unread::new(bookmark.unread.clone()), ..Memory::new(horizon) }
    }

    /// Forgets what is beyond the horizon of the message at `offset`.
    pub(crate) fn advance(&mut self, offset: i64) {
        self.recent.forget_before(offset - i64::from(self.horizon.offsets));
    }

    /// Remembers an id of the message at `offset`, for which the memory was advanced; whether it
    /// was remembered already.
    pub(crate) fn see(&mut self, id: Id, offset: i64) -> bool {
        self.recent.see(id, offset)
    }

    /// A message by this schema left its ids.
    pub(crate) fn read(&mut self, schema: u32, offset: i64) {
        self.unread.read(schema, offset);
    }

    /// The message at `offset` left no ids because its schema could not be used. By the time of a
    /// rebuild that may have changed, so it must be known.
    pub(crate) fn leave_unread(&mut self, schema: u32, offset: i64) {
        if self.is_unread(schema, offset) {
            return;
        }
        self.advance(offset);
        if let Some(forget) = self.unread.add(schema, offset, self.recent.oldest()) {
            self.recent.forget_before(forget);
        }
    }

    pub(crate) fn is_unread(&self, schema: u32, offset: i64) -> bool {
        self.unread.contains(schema, offset)
    }

    /// What it takes to remember the same at the next offset `next` again.
    pub(crate) fn bookmark(&mut self, next: i64) -> Bookmark {
        self.advance(next);
        let from = self.recent.oldest();
        Bookmark { from, unread: self.unread.gaps_since(from), rules: None }
    }

    pub(crate) fn ids(&self) -> usize {
        self.recent.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.recent.memory_bytes()
    }

    /// Where the oldest id was seen last.
    pub(crate) fn oldest(&self) -> Option<i64> {
        self.recent.oldest()
    }

    #[cfg(test)]
    fn ids_by_age(&self) -> Vec<(Id, i64)> {
        self.recent.iter().collect()
    }
}
