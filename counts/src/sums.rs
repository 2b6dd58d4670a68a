//! The sums of one flush, by cell: namespace, key and bucket.
//!
//! ```text
//!  message ──► hash_cell ×n ──► Slots ────────► Records ──in order of first appearance──► deltas
//!              hashes           hash → record   sum, events, bucket, names: one arena
//! ```
//!
//! A million cells do not fit into the processor's caches. An increment that waits for memory twice
//! in a row, for its slot and then for its record, costs more than all its arithmetic. So the cells
//! of a whole message are hashed first, and while one increment is added, the processor already
//! loads the record of a later one and the slot of a still later one.
//!
//! A record holds 64 bits. A sum that outgrows them goes on in a second record of the same cell, so
//! that a cell may have several deltas and no increment is refused for what others added.

mod prefetch;
mod records;
mod slots;

use std::hash::{BuildHasher, Hasher};

use tally_schemas::{Delta, Increment};

use self::records::{Cell, Records};
use self::slots::{Lookup, Slots};
use crate::Fingerprint;
use crate::fingerprint::FingerprintSum;

/// The sums of one flush, in order of first appearance.
#[derive(Default)]
pub struct Sums {
    hasher: foldhash::fast::RandomState,
    slots: Slots,
    records: Records,
    /// What the names of all deltas take in Avro, in bytes, with their lengths.
    names_bytes: usize,
    /// Bitwise OR of the zigzag encoding of every value that a sum has had; its bit length bounds
    /// the longest sum.
    zigzag_bits: u64,
    /// How many increments were added.
    increments: u64,
}

/// The cell that an increment belongs to, as the table finds it: its names are the increment's.
#[derive(Clone, Copy)]
pub(crate) struct HashedCell {
    hash: u32,
    bucket: u32,
}

/// The most that the length of a name, a bucket and any other number take in Avro, in bytes.
const LENGTH_BYTES: usize = 3;
const BUCKET_BYTES: usize = 5;
const NUMBER_BYTES: usize = 10;

/// The most that a delta's numbers take in Avro, in bytes: two lengths, the bucket, the sum and the
/// events.
const NUMBERS_BYTES: usize = 2 * LENGTH_BYTES + BUCKET_BYTES + 2 * NUMBER_BYTES;

/// The most that a delta takes in Avro, in bytes: one whose names are as long as they may be.
const MAX_DELTA_BYTES: usize = NUMBERS_BYTES + 2 * crate::Fold::MAX_NAME_BYTES;

/// How many increments ahead a record is prefetched; its slot is prefetched twice as far ahead.
/// Measured: 8 is too late where the table is large; from 16 to 32 there is no difference.
const AHEAD: usize = 16;

impl Sums {
    /// The least that a delta takes, by [`Sums::encoded_bytes`]: both names have a byte.
    pub(crate) const MIN_DELTA_BYTES: usize = NUMBERS_BYTES + 2;

    pub fn new() -> Sums {
        Sums::default()
    }

    #[inline(always)]
    pub(crate) fn hash_cell(&self, namespace: &str, key: &str, bucket: u32) -> HashedCell {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        hasher.write(namespace.as_bytes());
        hasher.write_u64(u64::from(bucket) << 32 | namespace.len() as u64);
        HashedCell { hash: (hasher.finish() >> 32) as u32, bucket }
    }

    /// Adds the increments. `cells` are their cells, in the same order; names are at most
    /// `u16::MAX` bytes long ([`crate::check`] makes sure).
    ///
    /// # Panics
    /// If a flush would count 2⁴⁸ increments or more.
    #[inline]
    pub(crate) fn add_all(&mut self, increments: &[Increment<'_>], cells: &[HashedCell]) {
        assert_eq!(increments.len(), cells.len(), "every increment has its cell");
        self.increments += increments.len() as u64;
        assert!(self.increments <= Records::MAX_EVENTS, "a flush counts less than 2^48 increments");
        self.slots.reserve(self.records.len() + increments.len());
        for cell in cells.iter().take(2 * AHEAD) {
            self.slots.prefetch(cell.hash);
        }
        for cell in cells.iter().take(AHEAD) {
            self.prefetch_record(*cell);
        }
        for (i, (increment, cell)) in increments.iter().zip(cells).enumerate() {
            if let Some(later) = cells.get(i + AHEAD) {
                self.prefetch_record(*later);
            }
            if let Some(later) = cells.get(i + 2 * AHEAD) {
                self.slots.prefetch(later.hash);
            }
            self.add(increment, *cell);
        }
    }

    #[inline(always)]
    fn prefetch_record(&self, cell: HashedCell) {
        if let Some(record) = self.slots.guess(cell.hash) {
            self.records.prefetch(record);
        }
    }

    #[inline(always)]
    fn add(&mut self, increment: &Increment<'_>, hashed: HashedCell) {
        let cell = Cell::of(increment, hashed.bucket);
        let slot = match self.slots.find(hashed.hash, |record| self.records.is(record, cell)) {
            Lookup::Found { slot, record } => {
                if let Some(sum) = self.records.add(record, increment.delta) {
                    self.zigzag_bits |= zigzag(sum);
                    return;
                }
                slot
            }
            Lookup::Vacant { slot } => slot,
        };
        // The cell's record from now on: its first one, or one more where the sum is full.
        self.slots.fill(slot, hashed.hash, self.records.push(cell, increment.delta));
        self.names_bytes += names_bytes(increment);
        self.zigzag_bits |= zigzag(increment.delta);
    }

    /// The deltas in order of first appearance. A cell has more than one where 64 bits do not hold
    /// its sum.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Delta<'_>> {
        self.records.iter()
    }

    /// An upper bound of the deltas' length in Avro, in bytes. It takes each sum to be as long as
    /// the longest, and each count of events to be that of all increments.
    #[inline]
    pub fn encoded_bytes(&self) -> usize {
        encoded_bytes(self.names_bytes, self.len(), self.zigzag_bits, self.increments)
    }

    /// Whether [`Sums::encoded_bytes`] would be at most `limit` after these increments were added,
    /// even if each of them makes a cell of its own.
    #[inline]
    pub(crate) fn has_room(&self, increments: &[Increment<'_>], limit: usize) -> bool {
        let len = self.len() + increments.len();
        let most = self.names_bytes
            + self.len() * (BUCKET_BYTES + 2 * NUMBER_BYTES)
            + increments.len() * MAX_DELTA_BYTES;
        if most <= limit {
            return true;
        }
        let names = self.names_bytes + increments.iter().map(names_bytes).sum::<usize>();
        // The zigzag encoding of a number is about twice its size: the largest that any sum can
        // have now, and what all the increments can add to one sum.
        let largest = u64::MAX.checked_shr(self.zigzag_bits.leading_zeros()).unwrap_or(0);
        let add_delta = |largest: u64, increment: &Increment<'_>| {
            largest.saturating_add(increment.delta.unsigned_abs().saturating_mul(2))
        };
        let largest = increments.iter().fold(largest.saturating_add(1), add_delta);
        encoded_bytes(names, len, largest, self.increments + increments.len() as u64) <= limit
    }

    /// The memory that is allocated, used or not, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes() + self.records.memory_bytes()
    }

    /// How many deltas there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the deltas of these increments take at most `limit` bytes in Avro, whatever their
    /// numbers are, even if each increment makes a cell of its own.
    #[inline]
    pub(crate) fn may_fit<'a>(
        increments: impl ExactSizeIterator<Item = Increment<'a>>,
        limit: usize,
    ) -> bool {
        let bytes = |increment: Increment<'a>| {
            increment.namespace.len() + increment.key.len() + NUMBERS_BYTES
        };
        increments.len() * MAX_DELTA_BYTES <= limit || increments.map(bytes).sum::<usize>() <= limit
    }

    /// Removes all cells and keeps the allocations; where less than a quarter of one was used, half
    /// of it is freed. The hash has a new random key from now on.
    pub(crate) fn clear(&mut self) {
        self.hasher = foldhash::fast::RandomState::default();
        self.slots.clear(self.records.len());
        self.records.clear();
        self.names_bytes = 0;
        self.zigzag_bits = 0;
        self.increments = 0;
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let mut rows = FingerprintSum::default();
        for delta in self.iter() {
            rows.add(delta.namespace, delta.key, delta.bucket_s, delta.sum);
        }
        rows.take()
    }
}

#[inline(always)]
fn names_bytes(increment: &Increment<'_>) -> usize {
    let text = |text: &str| text.len() + varint_bytes(2 * text.len() as u64);
    text(increment.namespace) + text(increment.key)
}

#[inline]
fn encoded_bytes(names_bytes: usize, len: usize, zigzag: u64, increments: u64) -> usize {
    names_bytes + len * (BUCKET_BYTES + varint_bytes(zigzag) + varint_bytes(2 * increments))
}

/// The zigzag encoding of a number, which Avro then writes as a varint.
#[inline(always)]
fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

/// How many bytes the varint takes: one for every seven bits.
#[inline(always)]
fn varint_bytes(zigzag: u64) -> usize {
    (63 - (zigzag | 1).leading_zeros() as usize) / 7 + 1
}

#[cfg(test)]
mod tests;
