//! The counters that were read last, within bounds of entries and bytes.
//!
//! ```text
//!  a counter that has counts ───► counted   7/8 of the bounds; the one read longest ago goes first
//!  one that has none        ───► unknown   1/8: questions about what does not exist never push
//!                                   │        out what does
//!  its first delta: to `counted` ◄──┘
//! ```

use std::sync::Arc;

use lru::LruCache;

use crate::counter::{Counter, Name, Named};
use crate::vector::Vector;
use crate::window::Delta;

/// What an entry takes besides its name: the key and the value in a node of the list, the node's
/// two neighbours, up to two of the map's slots, the name's reference counts, and the allocator's
/// own for the node and for the name.
const ENTRY_BYTES: usize = size_of::<(Counter, Entry)>() + 2 * 8 + 2 * 17 + 2 * 8 + 2 * 16;

/// The share of the bounds that is for counters without counts.
const UNKNOWN_SHARE: usize = 8;

/// Stands for what does not fit 128 bits, and stays whatever is added: one that wraps, or that
/// comes back from there, would be a wrong number.
const BEYOND: i128 = i128::MAX;

/// What a counter came to. Wider than a delta's 64 bits, so that adding up buckets never wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) sum: i128,
    pub(crate) events: i128,
}

impl Total {
    pub(crate) const ZERO: Total = Total { sum: 0, events: 0 };

    pub(crate) fn add(&mut self, sum: i64, events: i64) {
        self.add_total(Total { sum: sum.into(), events: events.into() });
    }

    pub(crate) fn add_total(&mut self, other: Total) {
        self.sum = plus(self.sum, other.sum);
        self.events = plus(self.events, other.events);
    }

    /// Whether the numbers are what the counter came to.
    pub(crate) fn is_exact(self) -> bool {
        self.sum != BEYOND && self.events != BEYOND
    }
}

fn plus(one: i128, other: i128) -> i128 {
    if one == BEYOND || other == BEYOND {
        return BEYOND;
    }
    one.checked_add(other).unwrap_or(BEYOND)
}

/// What the cache may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheLimits {
    pub(crate) counters: usize,
    pub(crate) bytes: usize,
}

/// The counters that were read last, those that have no counts included, each exact as of its own
/// vector.
pub(crate) struct Cache {
    counted: Segment,
    unknown: Segment,
}

pub(crate) struct Entry {
    pub(crate) total: Total,
    /// The snapshot's vector, until the tail has passed it: a batch before it is in the total
    /// already.
    pub(crate) read_at: Option<Arc<Vector>>,
    /// What the entry accounts for of that vector, which the counters of one query share, in bytes.
    pub(crate) vector_share: u32,
}

impl Cache {
    /// The room grows with use: a large bound costs nothing until it is filled.
    pub(crate) fn new(CacheLimits { counters, bytes }: CacheLimits) -> Cache {
        let (unknown, unknown_bytes) = ((counters / UNKNOWN_SHARE).max(1), bytes / UNKNOWN_SHARE);
        let counted = (counters - counters / UNKNOWN_SHARE).max(1);
        Cache {
            counted: Segment::new(counted, bytes - unknown_bytes),
            unknown: Segment::new(unknown, unknown_bytes),
        }
    }

    /// Adds a delta of the batch at `offset` to its counter, if that is here and does not include
    /// it.
    pub(crate) fn add(&mut self, partition: usize, offset: i64, delta: Delta<'_>) {
        if self.counted.add(partition, offset, delta) || self.unknown.entries.is_empty() {
            return;
        }
        if self.unknown.add(partition, offset, delta)
            && let Some((counter, entry)) = self.unknown.take_counted(delta.name)
        {
            self.counted.put(counter, entry);
        }
    }

    pub(crate) fn get(&mut self, counter: &Counter) -> Option<&mut Entry> {
        let Cache { counted, unknown } = self;
        counted.entries.get_mut(counter).or_else(|| unknown.entries.get_mut(counter))
    }

    pub(crate) fn put(&mut self, counter: Counter, entry: Entry) {
        let is_counted = entry.total != Total::ZERO;
        let (to, other) = if is_counted {
            (&mut self.counted, &mut self.unknown)
        } else {
            (&mut self.unknown, &mut self.counted)
        };
        other.remove(&counter);
        to.put(counter, entry);
    }

    /// Lets go of everything.
    pub(crate) fn clear(&mut self) {
        self.counted.clear();
        self.unknown.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.counted.entries.len() + self.unknown.entries.len()
    }

    /// What they take in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.counted.bytes + self.unknown.bytes
    }
}

struct Segment {
    entries: LruCache<Counter, Entry>,
    most: usize,
    bytes: usize,
    most_bytes: usize,
}

impl Segment {
    fn new(most: usize, most_bytes: usize) -> Segment {
        Segment { entries: LruCache::unbounded(), most, bytes: 0, most_bytes }
    }

    /// Whether the counter is here.
    fn add(&mut self, partition: usize, offset: i64, delta: Delta<'_>) -> bool {
        let Some(entry) = self.entries.peek_mut(&delta.name as &dyn Named) else { return false };
        if entry.read_at.as_ref().is_none_or(|vector| offset >= vector.at(partition).deltas) {
            entry.total.add(delta.sum, delta.events);
        }
        true
    }

    /// Hands the counter out if it has counts.
    fn take_counted(&mut self, name: Name<'_>) -> Option<(Counter, Entry)> {
        let name = &name as &dyn Named;
        if self.entries.peek(name)?.total == Total::ZERO {
            return None;
        }
        let (counter, entry) = self.entries.pop_entry(name)?;
        self.bytes -= bytes_of(&counter, &entry);
        Some((counter, entry))
    }

    fn put(&mut self, counter: Counter, entry: Entry) {
        self.remove(&counter);
        self.bytes += bytes_of(&counter, &entry);
        self.entries.put(counter, entry);
        while self.entries.len() > self.most || self.bytes > self.most_bytes {
            let Some((counter, entry)) = self.entries.pop_lru() else { return };
            self.bytes -= bytes_of(&counter, &entry);
        }
    }

    fn remove(&mut self, counter: &Counter) {
        if let Some((counter, entry)) = self.entries.pop_entry(counter) {
            self.bytes -= bytes_of(&counter, &entry);
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

fn bytes_of(counter: &Counter, entry: &Entry) -> usize {
    ENTRY_BYTES + counter.name_bytes() + entry.vector_share as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(events: i64) -> Entry {
        let events = i128::from(events);
        Entry { total: Total { sum: events, events }, read_at: None, vector_share: 0 }
    }

    fn counter(number: usize) -> Counter {
        Counter::new("ns", &format!("{number:0>8192}"))
    }

    #[test]
    fn what_does_not_fit_128_bits_is_never_told_as_a_number() {
        for far in [i128::MAX - 5, i128::MIN + 5] {
            let mut total = Total { sum: far, events: 1 };
            let away = if far > 0 { 10 } else { -10 };
            total.add(away / 5, 1);
            assert!(total.is_exact(), "{total:?}");
            total.add(away, 1);
            total.add(-away, 1);
            assert!(!total.is_exact(), "{total:?}");
        }
    }

    #[test]
    fn long_names_take_no_more_than_the_bytes_that_are_allowed() {
        let mut cache = Cache::new(CacheLimits { counters: 1_000_000, bytes: 1 << 20 });
        for number in 0..1_000 {
            cache.put(counter(number), entry(1));
            cache.put(counter(number + 1_000), entry(0));
        }
        assert!((900_000..=1 << 20).contains(&cache.bytes()), "{}", cache.bytes());
        assert!(cache.len() < 128);
        assert!(cache.get(&counter(999)).is_some(), "the last is here");
        assert!(cache.get(&counter(0)).is_none());
        cache.clear();
        assert_eq!((cache.len(), cache.bytes()), (0, 0));
    }

    #[test]
    fn counters_that_do_not_exist_push_out_none_that_do() {
        let mut cache = Cache::new(CacheLimits { counters: 80, bytes: 8 << 20 });
        for number in 0..70 {
            cache.put(counter(number), entry(1));
        }
        for number in 100..1_000 {
            cache.put(counter(number), entry(0));
            cache.get(&counter(number));
        }
        assert!((0..70).all(|number| cache.get(&counter(number)).is_some()));
        assert_eq!(cache.len(), 80);
    }

    #[test]
    fn a_counter_that_gets_its_first_counts_is_one_of_those_that_exist() {
        let mut cache = Cache::new(CacheLimits { counters: 80, bytes: 8 << 20 });
        let added = counter(1);
        cache.put(added.clone(), entry(0));
        let none = Delta { name: added.name(), bucket_s: 0, sum: 0, events: 0 };
        cache.add(0, 0, none);
        cache.add(0, 1, Delta { sum: 5, events: 1, ..none });
        for number in 100..1_000 {
            cache.put(counter(number), entry(0));
        }
        assert_eq!(cache.get(&added).map(|entry| entry.total.sum), Some(5));
        // What is read again as if it had never been there is kept once.
        cache.put(added.clone(), entry(0));
        cache.put(added.clone(), entry(3));
        assert_eq!(cache.get(&added).map(|entry| entry.total.sum), Some(3));
        let before = cache.bytes();
        cache.put(added, entry(4));
        assert_eq!(cache.bytes(), before);
    }
}
