//! From hashes to records: open addressing with linear probing.
//!
//! A slot is a word: the hash above, the record's number plus one below, all zeros where it is
//! empty. With the whole hash in the slot, neither probing nor growing touches a record whose hash
//! is another.

use super::prefetch::prefetch;

pub(super) struct Slots {
    /// A power of two of them, of which at most seven in ten are taken, so that every probe ends.
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

    /// The record that a lookup will most likely come to: a hint, which may name no record at all.
    #[inline(always)]
    pub(super) fn guess(&self, hash: u32) -> Option<u32> {
        let word = self.words[hash as usize & self.mask];
        (hash_of(word) == hash).then(|| record_of(word))
    }

    /// The record with this hash that `is` the one sought, or the slot for it.
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

    /// Takes a vacant slot, room for which was reserved.
    #[inline(always)]
    pub(super) fn fill(&mut self, slot: usize, hash: u32, record: u32) {
        self.words[slot] = u64::from(hash) << 32 | (u64::from(record) + 1);
    }

    /// Gives back the slot that was filled last of all that are filled.
    pub(super) fn empty(&mut self, slot: usize) {
        self.words[slot] = EMPTY;
    }

    /// Makes room for as many records in all, before the first of them is looked for.
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

    /// Empties all slots, of which `records` are filled.
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
