use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::counter::{Counter, Named};
use crate::vector::Vector;
use crate::window::Delta;

/// What a counter came to. Wider than the store's 64 bits, so that adding up buckets never wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) sum: i128,
    pub(crate) events: i128,
}

impl Total {
    pub(crate) const ZERO: Total = Total { sum: 0, events: 0 };

    pub(crate) fn add(&mut self, sum: i64, events: i64) {
        self.sum += i128::from(sum);
        self.events += i128::from(events);
    }
}

/// The counters that were read last, those that have no counts included, each exact as of its own
/// vector.
pub(crate) struct Cache {
    entries: LruCache<Counter, Entry>,
}

pub(crate) struct Entry {
    pub(crate) total: Total,
    /// The snapshot's vector, until the tail has passed it: a batch before it is in the total
    /// already.
    pub(crate) read_at: Option<Arc<Vector>>,
}

impl Cache {
    /// The room grows with use: a large bound costs nothing until it is filled.
    pub(crate) fn new(counters: NonZeroUsize) -> Cache {
        Cache { entries: LruCache::sparse(counters) }
    }

    /// Adds a delta of the batch at `offset` to its counter, if that is here and does not include
    /// it.
    pub(crate) fn add(&mut self, partition: usize, offset: i64, delta: Delta<'_>) {
        let Some(entry) = self.entries.peek_mut(&delta.name as &dyn Named) else { return };
        if entry.read_at.as_ref().is_none_or(|vector| offset >= vector.at(partition).deltas) {
            entry.total.add(delta.sum, delta.events);
        }
    }

    pub(crate) fn get(&mut self, counter: &Counter) -> Option<&mut Entry> {
        self.entries.get_mut(counter)
    }

    pub(crate) fn put(&mut self, counter: Counter, entry: Entry) {
        self.entries.put(counter, entry);
    }

    /// Lets go of everything.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
