use std::hash::{BuildHasher, Hasher};

use tally_schemas::Delta;

use crate::Fingerprint;
use crate::fingerprint::Fingerprinter;

/// The sums of one flush, by (namespace, key, bucket): an open-addressing table of 8-byte slots (a 32-bit tag from the
/// hash, and the entry's index) over a vector of entries in order of first appearance, their names in one arena.
///
/// A lookup touches one slot and, where the tag agrees, one entry and its name: no allocation, no pointer chasing.
pub struct Sums {
    hasher: foldhash::fast::RandomState,
    slots: Vec<Slot>,
    entries: Vec<Entry>,
    names: Vec<u8>,
    encoded_bytes: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    tag: u32,
    entry: u32,
}

const EMPTY: Slot = Slot { tag: 0, entry: u32::MAX };

struct Entry {
    hash: u64,
    name_at: u32,
    namespace_len: u16,
    key_len: u16,
    bucket: u32,
    sum: i64,
    events: i64,
}

/// The sum would not fit 64 bits; nothing was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

/// The most that an entry's numbers take in Avro: two lengths, the bucket, the sum and the events.
const NUMBERS_BYTES: usize = 3 + 3 + 5 + 10 + 10;

impl Default for Sums {
    fn default() -> Sums {
        Sums::new()
    }
}

impl Sums {
    const FIRST_SLOTS: usize = 1 << 10;

    pub fn new() -> Sums {
        Sums {
            hasher: foldhash::fast::RandomState::default(),
            slots: vec![EMPTY; Self::FIRST_SLOTS],
            entries: Vec::new(),
            names: Vec::new(),
            encoded_bytes: 0,
        }
    }

    /// Adds `delta` once. Names must be at most `u16::MAX` bytes long ([`crate::Fold`] checks it).
    #[inline]
    pub(crate) fn add(
        &mut self,
        namespace: &str,
        key: &str,
        bucket: u32,
        delta: i64,
    ) -> Result<(), Overflow> {
        let entry = self.entry(namespace, key, bucket);
        entry.sum = entry.sum.checked_add(delta).ok_or(Overflow)?;
        entry.events += 1;
        Ok(())
    }

    /// Takes back what [`Sums::add`] did to an entry.
    #[cold]
    pub(crate) fn take_back(&mut self, namespace: &str, key: &str, bucket: u32, delta: i64) {
        let entry = self.entry(namespace, key, bucket);
        entry.sum -= delta;
        entry.events -= 1;
    }

    /// Forgets the entries that came after the first `len`.
    #[cold]
    pub(crate) fn truncate(&mut self, len: usize) {
        for entry in self.entries.drain(len..) {
            let name_len = usize::from(entry.namespace_len) + usize::from(entry.key_len);
            self.names.truncate(self.names.len() - name_len);
            self.encoded_bytes -= name_len + NUMBERS_BYTES;
        }
        self.index_entries(self.slots.len());
    }

    #[inline]
    fn entry(&mut self, namespace: &str, key: &str, bucket: u32) -> &mut Entry {
        let hash = {
            let mut hasher = self.hasher.build_hasher();
            hasher.write(key.as_bytes());
            hasher.write(namespace.as_bytes());
            hasher.write_u64(u64::from(bucket) << 32 | namespace.len() as u64);
            hasher.finish()
        };
        let tag = (hash >> 32) as u32;
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        let index = loop {
            let slot = self.slots[at];
            if slot.entry == EMPTY.entry {
                break self.insert(at, hash, namespace, key, bucket);
            }
            if slot.tag == tag {
                let entry = &self.entries[slot.entry as usize];
                if entry.hash == hash
                    && entry.bucket == bucket
                    && self.names_of(entry) == (namespace.as_bytes(), key.as_bytes())
                {
                    break slot.entry as usize;
                }
            }
            at = (at + 1) & mask;
        };
        &mut self.entries[index]
    }

    fn insert(&mut self, at: usize, hash: u64, namespace: &str, key: &str, bucket: u32) -> usize {
        let index = self.entries.len();
        let name_at = u32::try_from(self.names.len()).expect("a flush holds less than 4 GiB of names");
        let name_len = |s: &str| u16::try_from(s.len()).expect("names are checked before they are summed");
        self.slots[at] = Slot { tag: (hash >> 32) as u32, entry: index as u32 };
        self.names.extend_from_slice(namespace.as_bytes());
        self.names.extend_from_slice(key.as_bytes());
        self.entries.push(Entry {
            hash,
            name_at,
            namespace_len: name_len(namespace),
            key_len: name_len(key),
            bucket,
            sum: 0,
            events: 0,
        });
        self.encoded_bytes += namespace.len() + key.len() + NUMBERS_BYTES;
        if self.entries.len() * 10 > self.slots.len() * 6 {
            self.index_entries(self.slots.len() * 2);
        }
        index
    }

    /// Makes the slots anew from the entries.
    #[cold]
    fn index_entries(&mut self, slots: usize) {
        self.slots.clear();
        self.slots.resize(slots, EMPTY);
        for (index, entry) in self.entries.iter().enumerate() {
            let mut at = entry.hash as usize & (slots - 1);
            while self.slots[at].entry != EMPTY.entry {
                at = (at + 1) & (slots - 1);
            }
            self.slots[at] = Slot { tag: (entry.hash >> 32) as u32, entry: index as u32 };
        }
    }

    #[inline]
    fn names_of(&self, entry: &Entry) -> (&[u8], &[u8]) {
        let start = entry.name_at as usize;
        let middle = start + usize::from(entry.namespace_len);
        (&self.names[start..middle], &self.names[middle..middle + usize::from(entry.key_len)])
    }

    /// The deltas in order of first appearance.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Delta<'_>> {
        let text = |bytes| std::str::from_utf8(bytes).expect("names went in as text");
        self.entries.iter().map(move |entry| {
            let (namespace, key) = self.names_of(entry);
            Delta {
                namespace: text(namespace),
                key: text(key),
                bucket_s: entry.bucket,
                sum: entry.sum,
                events: entry.events,
            }
        })
    }

    /// An upper bound of the deltas' length in Avro, in bytes.
    pub fn encoded_bytes(&self) -> usize {
        self.encoded_bytes
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn contents(sums: &Sums) -> BTreeMap<(String, String, u32), (i64, i64)> {
        sums.iter().map(|d| ((d.namespace.into(), d.key.into(), d.bucket_s), (d.sum, d.events))).collect()
    }

    proptest! {
        #[test]
        fn sums_are_those_of_an_ordinary_map(events in prop::collection::vec(("[ab]{0,2}", "[a-c]{0,3}", 0u32..3, -5i64..5), 0..3000)) {
            let mut sums = Sums::new();
            let mut model = BTreeMap::new();
            for (namespace, key, bucket, delta) in &events {
                sums.add(namespace, key, *bucket, *delta).unwrap();
                let entry = model.entry((namespace.clone(), key.clone(), *bucket)).or_insert((0i64, 0i64));
                entry.0 += delta;
                entry.1 += 1;
            }
            prop_assert_eq!(contents(&sums), model);
        }

        #[test]
        fn growth_keeps_every_entry(keys in prop::collection::hash_set("[a-z]{1,12}", 700..2000)) {
            let mut sums = Sums::new();
            for key in &keys {
                sums.add("ns", key, 60, 2).unwrap();
            }
            for key in &keys {
                sums.add("ns", key, 60, 1).unwrap();
            }
            prop_assert_eq!(sums.len(), keys.len());
            prop_assert!(sums.iter().all(|delta| delta.sum == 3 && delta.events == 2));
        }
    }

    #[test]
    fn an_overflow_adds_nothing() {
        let mut sums = Sums::new();
        sums.add("ns", "k", 0, i64::MAX).unwrap();
        assert_eq!(sums.add("ns", "k", 0, 1), Err(Overflow));
        assert_eq!(contents(&sums), BTreeMap::from([(("ns".into(), "k".into(), 0), (i64::MAX, 1))]));
    }
}
