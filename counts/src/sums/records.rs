//! The records of the cells, in order of first appearance, one behind the other in an arena: what
//! an increment needs of its record is on one or two cache lines.
//!
//! ```text
//!  0     8                  14        16       20              22
//!  │ sum │ events (48 bits) │ key len │ bucket │ namespace len │ namespace │ key │ zeros up to
//!                                                                                  a multiple of 8
//! ```
//!
//! Numbers are little-endian. A record's number is its position divided by 8, so that 32 bits reach
//! 32 GiB.

use tally_schemas::{Delta, Increment};

use super::prefetch::prefetch;

/// Invariant: `bytes` holds `len` records as drawn above, and behind each header the two names are
/// UTF-8, each by itself. Only [`Records::push`] writes names and lengths.
#[derive(Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
    len: usize,
}

/// What a record is for: a counter in one bucket.
#[derive(Clone, Copy)]
pub(super) struct Cell<'a> {
    namespace: &'a str,
    key: &'a str,
    bucket: u32,
}

const UNIT: usize = 8;
const HEADER: usize = 22;
/// Offset of the word that holds the key's length, the bucket and the namespace's length: two cells
/// with different words are different.
const SHAPE: usize = 14;
/// The second word holds the events in its lower 48 bits and the key's length above them.
const EVENTS_BITS: u32 = 48;
const EVENTS: u64 = (1 << EVENTS_BITS) - 1;

impl<'a> Cell<'a> {
    #[inline(always)]
    pub(super) fn of(increment: &Increment<'a>, bucket: u32) -> Cell<'a> {
        Cell { namespace: increment.namespace, key: increment.key, bucket }
    }

    #[inline(always)]
    pub(super) fn names_bytes(self) -> usize {
        self.namespace.len() + self.key.len()
    }
}

impl Records {
    pub(super) const MAX_EVENTS: u64 = EVENTS;

    #[inline(always)]
    pub(super) fn prefetch(&self, record: u32) {
        let at = record as usize * UNIT;
        prefetch(&self.bytes, at);
        prefetch(&self.bytes, at + HEADER + 24);
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        word(&self.bytes, at)
    }

    #[inline(always)]
    fn set_word(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    #[inline(always)]
    pub(super) fn is(&self, record: u32, cell: Cell<'_>) -> bool {
        let Cell { namespace, key, bucket } = cell;
        let at = record as usize * UNIT;
        let shape = key.len() as u64 | u64::from(bucket) << 16 | (namespace.len() as u64) << 48;
        if self.word(at + SHAPE) != shape {
            return false;
        }
        let names = &self.bytes[at + HEADER..][..cell.names_bytes()];
        same(&names[namespace.len()..], key.as_bytes())
            && same(&names[..namespace.len()], namespace.as_bytes())
    }

    /// Adds `delta` as one event; returns the new sum, or `None` if it would overflow.
    #[inline(always)]
    pub(super) fn add(&mut self, record: u32, delta: i64) -> Option<i64> {
        let at = record as usize * UNIT;
        let sum = self.word(at).cast_signed().checked_add(delta)?;
        self.set_word(at, sum.cast_unsigned());
        self.set_word(at + 8, self.word(at + 8) + 1);
        Some(sum)
    }

    /// Appends a record with one event.
    ///
    /// # Panics
    /// Beyond 32 GiB of records, or where a name is longer than `u16::MAX`.
    #[inline]
    pub(super) fn push(&mut self, cell: Cell<'_>, sum: i64) -> u32 {
        let Cell { namespace, key, bucket } = cell;
        let name_len = |name: &str| {
            u16::try_from(name.len()).expect("names are checked before they are summed")
        };
        let at = self.bytes.len();
        let record = u32::try_from(at / UNIT).ok().filter(|&record| record < u32::MAX);
        let record = record.expect("a flush holds less than 32 GiB of records");
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&sum.to_le_bytes());
        header[8..16].copy_from_slice(&(u64::from(name_len(key)) << EVENTS_BITS | 1).to_le_bytes());
        header[16..20].copy_from_slice(&bucket.to_le_bytes());
        header[20..].copy_from_slice(&name_len(namespace).to_le_bytes());
        let bytes = (HEADER + cell.names_bytes()).next_multiple_of(UNIT);
        self.bytes.reserve(bytes + UNIT);
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(namespace.as_bytes());
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.extend_from_slice(&[0; UNIT]);
        self.bytes.truncate(at + bytes);
        self.len += 1;
        record
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn clear(&mut self) {
        let (used, capacity) = (self.bytes.len(), self.bytes.capacity());
        self.bytes.clear();
        self.len = 0;
        if used < capacity / 4 {
            self.bytes.shrink_to(capacity / 2);
        }
    }

    pub(super) fn iter(&self) -> Iter<'_> {
        Iter { rest: &self.bytes, len: self.len }
    }
}

pub(super) struct Iter<'a> {
    /// The records that are still to come, laid out as in [`Records`].
    rest: &'a [u8],
    len: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Delta<'a>;

    #[inline]
    fn next(&mut self) -> Option<Delta<'a>> {
        self.len = self.len.checked_sub(1)?;
        let (header, behind) = self.rest.split_at(HEADER);
        let shape = word(header, SHAPE);
        let (key_len, namespace_len) = (usize::from(shape as u16), (shape >> 48) as usize);
        let (names, _) = behind.split_at(namespace_len + key_len);
        let (namespace, key) = names.split_at(namespace_len);
        self.rest = &self.rest[(HEADER + names.len()).next_multiple_of(UNIT)..];
        // SAFETY: by the records' invariant both names are UTF-8, where the header's lengths say.
        // (Checking it again takes a third of a flush's time.)
        let (namespace, key) =
            unsafe { (str::from_utf8_unchecked(namespace), str::from_utf8_unchecked(key)) };
        Some(Delta {
            namespace,
            key,
            bucket_s: (shape >> 16) as u32,
            sum: word(header, 0).cast_signed(),
            events: (word(header, 8) & EVENTS).cast_signed(),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }
}

impl ExactSizeIterator for Iter<'_> {}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Whether two names are equal. Names of common lengths are compared without a function call, so
/// that the processor goes on to the next increment while it waits for this one's bytes.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    let words = |at: usize| word(a, at) ^ word(b, at);
    let half = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    };
    match a.len() {
        len if len != b.len() => false,
        len @ 4..8 => half(a, 0) == half(b, 0) && half(a, len - 4) == half(b, len - 4),
        len @ 8..=16 => words(0) | words(len - 8) == 0,
        len @ 17..=32 => words(0) | words(8) | words(len - 16) | words(len - 8) == 0,
        _ => a == b,
    }
}
