//! A hash table from the hashes of cells to their records: open addressing with linear probing.
//!
//! A slot is a word of 64 bits: the hash in the upper half, the record's number plus one in the
//! lower half, zero where the slot is empty. Since the slot holds the whole hash, neither probing
//! nor growing reads a record whose hash is another.

use super::prefetch::prefetch;

pub(super) struct Slots {
    /// The slots: a power of two of them, of which at most seven in ten are filled, so that every
    /// probe ends at an empty one.
    words: Vec<u64>,
    mask: usize,
}

pub(super) enum Lookup {
    Found { slot: usize, record: u32 },
    Vacant { slot: usize },
}

const EMPTY: u64 = 0;
const FIRST_SLOTS: usize = 1 << 10;

#[inline(always)]
fn hash_of(word: u64) -> u32 {
    (word >> 32) as u32
}

/// The record in a slot that is not empty.
#[inline(always)]
fn record_of(word: u64) -> u32 {
    (word as u32).wrapping_sub(1)
}

impl Default for Slots {
    fn default() -> Slots {
        Slots::with(FIRST_SLOTS)
    }
}

impl Slots {
    fn with(slots: usize) -> Slots {
        Slots { words: vec![EMPTY; slots], mask: slots - 1 }
    }

    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u32) {
        prefetch(&self.words, hash as usize & self.mask);
    }

    /// The record that a lookup will most likely find: a hint for prefetching, which may be wrong.
    #[inline(always)]
    pub(super) fn guess(&self, hash: u32) -> Option<u32> {
        let word = self.words[hash as usize & self.mask];
        (hash_of(word) == hash).then(|| record_of(word))
    }

    /// The record with this hash for which `is` returns true, or the slot to put it into.
    #[inline(always)]
    pub(super) fn find(&self, hash: u32, is: impl Fn(u32) -> bool) -> Lookup {
        let mut slot = hash as usize & self.mask;
        loop {
            let word = self.words[slot];
            if word == EMPTY {
                return Lookup::Vacant { slot };
            }
            if hash_of(word) == hash && is(record_of(word)) {
                return Lookup::Found { slot, record: record_of(word) };
            }
            slot = (slot + 1) & self.mask;
        }
    }

    /// Fills a vacant slot, room for which was reserved, or puts another record of the same hash
    /// into a filled one.
    #[inline(always)]
    pub(super) fn fill(&mut self, slot: usize, hash: u32, record: u32) {
        self.words[slot] = u64::from(hash) << 32 | (u64::from(record) + 1);
    }

    /// Makes room for `records` records in all. Moves the slots, so it comes before a lookup.
    #[inline(always)]
    pub(super) fn reserve(&mut self, records: usize) {
        if records * 10 > self.words.len() * 7 {
            self.grow(records);
        }
    }

    #[cold]
    fn grow(&mut self, records: usize) {
        let mut grown = Slots::with((records * 10).div_ceil(7).next_power_of_two());
        for &word in self.words.iter().filter(|&&word| word != EMPTY) {
            let Lookup::Vacant { slot } = grown.find(hash_of(word), |_| false) else {
                unreachable!("no record is taken for the one sought");
            };
            grown.words[slot] = word;
        }
        *self = grown;
    }

    /// Empties all slots, of which `records` are filled; frees half of them if those are few.
    pub(super) fn clear(&mut self, records: usize) {
        if self.words.len() > FIRST_SLOTS && records * 8 < self.words.len() {
            *self = Slots::with(self.words.len() / 2);
        } else {
            self.words.fill(EMPTY);
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}
