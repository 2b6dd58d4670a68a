//! The id memory of a partition: an increment or a batch whose id is remembered is a duplicate.
//!
//! ```text
//!  offset o ──► see(id) ──► RecentIds: ids by when they were seen last
//!                  │            │       └──evicts──► beyond max_ids, or before o − horizon
//!                  └──► was it remembered?     │ oldest
//!  rejected for its schema ──► UnreadMessages  ▼
//!                                 └───gaps──► Bookmark ──committed with the offset──► rebuilt by
//!                                                                  reading [oldest, o) again
//! ```
//!
//! What is remembered at an offset depends only on the messages before it and on which schemas the
//! registry knew when each of them was read. Of the distinct ids within the horizon, in messages
//! whose schema was known, the ids seen last are remembered. [`UnreadMessages`] says in which
//! messages the schema was not known. So whoever reads from the oldest id on and passes over those
//! messages remembers the same ids, and nothing but Kafka has to keep them.

mod bookmark;
mod recent_ids;
#[cfg(test)]
mod tests;
mod unread_messages;

use tally_schemas::Increment;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use self::recent_ids::RecentIds;
use self::unread_messages::UnreadMessages;
use crate::{Horizon, IdScope};

pub use bookmark::{Bookmark, BookmarkParseError};

/// The hash of an id, in 128 bits. An increment's id and a batch's id are different even if they
/// are the same text, and so are the ids of two counters where ids are of counters.
///
/// If two ids had one hash, the second would be taken for a duplicate: with 10⁶ ids remembered,
/// that happens to one in 3·10³² new ids. The hash has no secret key, since a client that makes two
/// ids collide could as well send the same id twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(u128);

impl Id {
    const INCREMENT_SEED: u64 = 1;
    const BATCH_SEED: u64 = 2;
    const COUNTER_SEED: u64 = 3;

    /// The increment's id; an empty one is none, but within partitions, as the first version of
    /// Tally had it. `buffer` holds the bytes that are hashed.
    pub(crate) fn of_increment(
        increment: &Increment<'_>,
        within: IdScope,
        buffer: &mut Vec<u8>,
    ) -> Option<Id> {
        let Increment { namespace, key, .. } = *increment;
        let id = increment.id.filter(|id| is_id(id, within))?;
        if within == IdScope::Partition {
            return Some(Id(xxh3_128_with_seed(id.as_bytes(), Self::INCREMENT_SEED)));
        }
        buffer.clear();
        // The lengths say where one name ends, so that no two counters' ids are the same bytes.
        for name in [namespace, key] {
            buffer.extend_from_slice(&(name.len() as u64).to_le_bytes());
            buffer.extend_from_slice(name.as_bytes());
        }
        buffer.extend_from_slice(id.as_bytes());
        Some(Id(xxh3_128_with_seed(buffer, Self::COUNTER_SEED)))
    }

    pub(crate) fn of_batch(id: &str) -> Id {
        Id(xxh3_128_with_seed(id.as_bytes(), Self::BATCH_SEED))
    }
}

/// Whether a text is an id.
pub(crate) fn is_id(text: &str, within: IdScope) -> bool {
    within == IdScope::Partition || !text.is_empty()
}

/// The remembered ids of one partition.
pub(crate) struct IdMemory {
    horizon: Horizon,
    recent: RecentIds,
    unread: UnreadMessages,
}

impl IdMemory {
    pub(crate) fn new(horizon: Horizon) -> IdMemory {
        IdMemory { horizon, recent: RecentIds::new(horizon.ids), unread: UnreadMessages::default() }
    }

    /// An empty memory at the offset where the bookmark says to begin reading: the messages from
    /// there on must follow.
    pub(crate) fn resume(horizon: Horizon, bookmark: &Bookmark) -> IdMemory {
        IdMemory { unread: UnreadMessages::new(bookmark.unread.clone()), ..IdMemory::new(horizon) }
    }

    /// Forgets the ids that are beyond the horizon of the message at `offset`.
    pub(crate) fn advance(&mut self, offset: i64) {
        self.recent.forget_before(offset - i64::from(self.horizon.offsets));
    }

    /// Remembers an id of the message at `offset`, after [`IdMemory::advance`] was called for it;
    /// returns whether the id was remembered before.
    pub(crate) fn see(&mut self, id: Id, offset: i64) -> bool {
        self.recent.see(id, offset)
    }

    /// Notes that the ids of a message by this schema were remembered.
    pub(crate) fn note_read(&mut self, schema: u32, offset: i64) {
        self.unread.end_runs(schema, offset);
    }

    /// Notes that the ids of the message at `offset` were not remembered, because its schema could
    /// not be used. When the memory is rebuilt, the schema may be there, so this must be noted.
    pub(crate) fn note_unread(&mut self, schema: u32, offset: i64) {
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

    /// The bookmark by which the same ids can be remembered at the next offset `next` again.
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

    /// The offset where the oldest id was seen last.
    pub(crate) fn oldest(&self) -> Option<i64> {
        self.recent.oldest()
    }

    #[cfg(test)]
    fn ids_by_age(&self) -> Vec<(Id, i64)> {
        self.recent.iter().collect()
    }
}
