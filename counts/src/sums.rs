//! The sums of one flush, by (namespace, key, bucket).
//!
//! ```text
//!  message ──► place ×n ──► Slots ──────────► Records ──in order of first appearance──► deltas, fingerprint
//!              hashes       hash → record     sum, events, bucket, names: one arena
//! ```
//!
//! A million counters outgrow the processor's caches, and an increment that waits for memory twice
//! in a row, for its slot and then for its record, costs more than all its arithmetic. So a
//! message's hashes come first, and while one increment is added, the record of a later one and the
//! slot of a still later one are on their way.

mod prefetch;
mod records;
mod slots;

use std::hash::{BuildHasher, Hasher};

use tally_schemas::{Delta, Increment};

use self::records::{Counter, Records};
use self::slots::{Lookup, Slots};
use crate::Fingerprint;
use crate::fingerprint::Fingerprinter;

/// The sums of one flush, in order of first appearance.
#[derive(Default)]
pub struct Sums {
    hasher: foldhash::fast::RandomState,
    slots: Slots,
    records: Records,
    /// Of the deltas' names in Avro.
    names_bytes: usize,
    /// All sums that there ever were, one or the other bit in Avro's zigzag: as wide as the widest.
    widest: u64,
    increments: u64,
}

/// Where an increment belongs.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    hash: u32,
    bucket: u32,
}

impl Place {
    pub(crate) fn bucket(self) -> u32 {
        self.bucket
    }
}

/// The increment at this index does not fit its sum's 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverflowAt(pub(crate) usize);

/// The most that a length, a bucket and another number take in Avro.
const LENGTH_BYTES: usize = 3;
const BUCKET_BYTES: usize = 5;
const NUMBER_BYTES: usize = 10;

/// The most that an entry's numbers take in Avro: two lengths, the bucket, the sum and the events.
const NUMBERS_BYTES: usize = 2 * LENGTH_BYTES + BUCKET_BYTES + 2 * NUMBER_BYTES;

/// The most that a delta takes whose names are as long as they may be.
const MAX_DELTA_BYTES: usize = NUMBERS_BYTES + 2 * crate::Fold::MAX_NAME_BYTES;

/// How many increments ahead a record is asked for; its slot is asked for as long before that.
/// Measured: 8 is too late where the table is large, from 16 to 32 there is no difference.
const AHEAD: usize = 16;

impl Sums {
    pub fn new() -> Sums {
        Sums::default()
    }

    #[inline(always)]
    pub(crate) fn place(&self, namespace: &str, key: &str, bucket: u32) -> Place {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        hasher.write(namespace.as_bytes());
        hasher.write_u64(u64::from(bucket) << 32 | namespace.len() as u64);
        Place { hash: (hasher.finish() >> 32) as u32, bucket }
    }

    /// Adds all increments, or none. `places` are theirs, and their names are at most `u16::MAX`
    /// bytes long ([`crate::Fold`] checks it).
    #[inline]
    pub(crate) fn add_all(
        &mut self,
        increments: &[Increment<'_>],
        places: &[Place],
    ) -> Result<(), OverflowAt> {
        let added = self.add_each(increments, places);
        if let Err(OverflowAt(index)) = added {
            self.take_back(&increments[..index], &places[..index]);
        }
        added
    }

    /// Adds one increment after the other; those before one that does not fit are added.
    ///
    /// # Panics
    /// If a flush would count 2⁴⁸ increments or more.
    pub(crate) fn add_each(
        &mut self,
        increments: &[Increment<'_>],
        places: &[Place],
    ) -> Result<(), OverflowAt> {
        assert_eq!(increments.len(), places.len(), "every increment has its place");
        self.increments += increments.len() as u64;
        assert!(self.increments <= Records::MAX_EVENTS, "a flush counts less than 2^48 increments");
        self.slots.reserve(self.records.len() + increments.len());
        for place in places.iter().take(2 * AHEAD) {
            self.slots.prefetch(place.hash);
        }
        for place in places.iter().take(AHEAD) {
            self.prefetch_record(*place);
        }
        for (i, (increment, place)) in increments.iter().zip(places).enumerate() {
            if let Some(later) = places.get(i + AHEAD) {
                self.prefetch_record(*later);
            }
            if let Some(later) = places.get(i + 2 * AHEAD) {
                self.slots.prefetch(later.hash);
            }
            if !self.add(increment, *place) {
                self.increments -= (increments.len() - i) as u64;
                return Err(OverflowAt(i));
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn prefetch_record(&self, place: Place) {
        if let Some(record) = self.slots.guess(place.hash) {
            self.records.prefetch(record);
        }
    }

    /// Whether it fitted.
    #[inline(always)]
    fn add(&mut self, increment: &Increment<'_>, place: Place) -> bool {
        let counter = Counter::of(increment, place.bucket);
        match self.slots.find(place.hash, |record| self.records.is(record, counter)) {
            Lookup::Found { record, .. } => {
                let Some(sum) = self.records.add(record, increment.delta) else { return false };
                self.widest |= zigzag(sum);
            }
            Lookup::Vacant { slot } => {
                self.slots.fill(slot, place.hash, self.records.push(counter, increment.delta));
                self.names_bytes += names_bytes(increment);
                self.widest |= zigzag(increment.delta);
            }
        }
        true
    }

    /// Undoes what was added last, from the last to the first, so that slots and records are as
    /// they were.
    #[cold]
    fn take_back(&mut self, increments: &[Increment<'_>], places: &[Place]) {
        self.increments -= increments.len() as u64;
        for (increment, place) in increments.iter().zip(places).rev() {
            let counter = Counter::of(increment, place.bucket);
            let Lookup::Found { slot, record } =
                self.slots.find(place.hash, |record| self.records.is(record, counter))
            else {
                unreachable!("what was added is there");
            };
            if self.records.events(record) == 1 {
                self.records.pop(record);
                self.slots.empty(slot);
                self.names_bytes -= names_bytes(increment);
            } else {
                self.records.take_back(record, increment.delta);
            }
        }
    }

    /// The deltas in order of first appearance.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Delta<'_>> {
        self.records.iter()
    }

    /// An upper bound of the deltas' length in Avro, in bytes: each with a sum as long as the
    /// longest, and as many events as there are increments.
    #[inline]
    pub fn encoded_bytes(&self) -> usize {
        encoded_bytes(self.names_bytes, self.len(), self.widest, self.increments)
    }

    /// Whether these increments can be added and [`Sums::encoded_bytes`] be `limit` at most, even
    /// if each is of another counter.
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
        // Twice the largest sum's size, and what may come on top of it.
        let widest = u64::MAX.checked_shr(self.widest.leading_zeros()).unwrap_or(0);
        let reach = |widest: u64, increment: &Increment<'_>| {
            widest.saturating_add(increment.delta.unsigned_abs().saturating_mul(2))
        };
        let widest = increments.iter().fold(widest.saturating_add(1), reach);
        encoded_bytes(names, len, widest, self.increments + increments.len() as u64) <= limit
    }

    /// The memory that it holds, used or not, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes() + self.records.memory_bytes()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the deltas of these increments, whatever their numbers, take at most `room` bytes,
    /// even if each is of another counter.
    #[inline]
    pub(crate) fn may_fit<'a>(
        increments: impl ExactSizeIterator<Item = Increment<'a>>,
        room: usize,
    ) -> bool {
        let bytes = |increment: Increment<'a>| {
            increment.namespace.len() + increment.key.len() + NUMBERS_BYTES
        };
        increments.len() * MAX_DELTA_BYTES <= room || increments.map(bytes).sum::<usize>() <= room
    }

    /// Forgets everything but the memory; of that it lets half go where less than a quarter was
    /// used. Hashes with another key from now on.
    pub(crate) fn clear(&mut self) {
        self.hasher = foldhash::fast::RandomState::default();
        self.slots.clear(self.records.len());
        self.records.clear();
        self.names_bytes = 0;
        self.widest = 0;
        self.increments = 0;
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let mut rows = Fingerprinter::default();
        let mut total = Fingerprint::ZERO;
        for delta in self.iter() {
            total += rows.row(delta.namespace, delta.key, delta.bucket_s, delta.sum);
        }
        total
    }
}

#[inline(always)]
fn names_bytes(increment: &Increment<'_>) -> usize {
    let text = |text: &str| text.len() + varint_bytes(2 * text.len() as u64);
    text(increment.namespace) + text(increment.key)
}

#[inline]
fn encoded_bytes(names_bytes: usize, len: usize, widest: u64, increments: u64) -> usize {
    names_bytes + len * (BUCKET_BYTES + varint_bytes(widest) + varint_bytes(2 * increments))
}

/// As Avro writes a number, before it is cut into pieces of seven bits.
#[inline(always)]
fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

/// How many pieces of seven bits that makes.
#[inline(always)]
fn varint_bytes(zigzag: u64) -> usize {
    (63 - (zigzag | 1).leading_zeros() as usize) / 7 + 1
}

#[cfg(test)]
mod tests;
