//! The order in which ClickHouse keeps rows: by namespace, key and bucket. A block that comes in
//! this order need not be sorted by ClickHouse, to which that is half of what an insert costs.
//!
//! ```text
//!  batch ──► Delta… ──by namespace──► seven bytes of the key │ how many are left ──► sort
//!                                                ▲                                    │
//!                                                └── the next seven of those alike ◄──┘
//! ```
//!
//! So a key is compared as one number, and what all keys begin with costs one look at each.

use std::ops::Range;

use hashbrown::HashMap;
use tally_schemas::{DecodeError, Delta, DeltaBatch};

/// The deltas of a batch by namespace, key and bucket.
pub(crate) struct SortedDeltas<'a> {
    deltas: Vec<Delta<'a>>,
    order: Vec<Ordered>,
    namespace_of: Vec<u32>,
    /// The namespaces in order, each with its part of `order`.
    groups: Vec<(&'a str, Range<usize>)>,
}

/// Memory for another batch.
#[derive(Default)]
pub(crate) struct Room {
    deltas: Vec<Delta<'static>>,
    order: Vec<Ordered>,
    namespace_of: Vec<u32>,
}

/// A delta of one namespace, as it is sorted.
#[derive(Clone, Copy, Default)]
struct Ordered {
    /// Bytes of the key, see [`stretch`].
    stretch: u64,
    /// Its number in the batch.
    number: u32,
}

/// The bytes of a key that one comparison looks at.
const STRETCH: usize = 7;
/// What a stretch says of the bytes left if there are more than those in it.
const MORE: u8 = STRETCH as u8 + 1;

/// The namespaces whose numbers are found without a hash.
const RECENT: usize = 64;

impl<'a> SortedDeltas<'a> {
    pub(crate) fn read(
        batch: &DeltaBatch<'a>,
        room: Room,
    ) -> Result<SortedDeltas<'a>, DecodeError> {
        let Room { deltas, order, namespace_of } = room;
        let mut sorted = SortedDeltas { deltas, order, namespace_of, groups: Vec::new() };
        sorted.take(batch)?;
        sorted.group();
        for (_, group) in &sorted.groups {
            sort(&mut sorted.order[group.clone()], &sorted.deltas);
        }
        Ok(sorted)
    }

    /// Takes the deltas of a batch, and numbers their namespaces as they come.
    fn take(&mut self, batch: &DeltaBatch<'a>) -> Result<(), DecodeError> {
        let announced = batch.deltas.announced();
        self.deltas.reserve(announced);
        self.namespace_of.reserve(announced);
        let mut numbers = HashMap::new();
        // A batch mostly has few namespaces, and finds them here without a hash.
        let mut recent = [("", u32::MAX); RECENT];
        for delta in batch.deltas.clone() {
            let delta = delta?;
            let recent = &mut recent[recent_at(delta.namespace)];
            if !is_same(recent.0, delta.namespace) || recent.1 == u32::MAX {
                *recent = (delta.namespace, self.number(&mut numbers, delta.namespace));
            }
            self.groups[recent.1 as usize].1.end += 1;
            self.namespace_of.push(recent.1);
            self.deltas.push(delta);
        }
        Ok(())
    }

    #[inline(never)]
    fn number(&mut self, numbers: &mut HashMap<&'a str, u32>, namespace: &'a str) -> u32 {
        *numbers.entry(namespace).or_insert_with(|| {
            self.groups.push((namespace, 0..0));
            self.groups.len() as u32 - 1
        })
    }

    /// Puts each namespace's deltas together, the namespaces in order.
    fn group(&mut self) {
        let mut ranks: Vec<usize> = (0..self.groups.len()).collect();
        ranks.sort_unstable_by_key(|&number| self.groups[number].0);
        // Where each namespace's next delta goes.
        let mut next = vec![0; self.groups.len()];
        let mut end = 0;
        for number in ranks {
            let group = &mut self.groups[number].1;
            let begin = end;
            end += group.len();
            *group = begin..end;
            next[number] = begin;
        }
        self.order.resize(self.deltas.len(), Ordered::default());
        for (number, (delta, namespace)) in self.deltas.iter().zip(&self.namespace_of).enumerate() {
            let next = &mut next[*namespace as usize];
            let stretch = stretch(delta.key.as_bytes(), 0);
            self.order[*next] = Ordered { stretch, number: number as u32 };
            *next += 1;
        }
        self.groups.sort_unstable_by_key(|(namespace, _)| *namespace);
    }

    /// Each namespace with its deltas.
    pub(crate) fn by_namespace(
        &self,
    ) -> impl Iterator<Item = (&'a str, impl ExactSizeIterator<Item = &Delta<'a>>)> {
        self.groups.iter().map(|(namespace, group)| {
            let order = &self.order[group.clone()];
            (*namespace, order.iter().map(|ordered| &self.deltas[ordered.number as usize]))
        })
    }

    /// The memory, for another batch.
    pub(crate) fn into_room(mut self) -> Room {
        self.deltas.clear();
        self.order.clear();
        self.namespace_of.clear();
        // A collected vector keeps its memory, and this one has nothing that is borrowed.
        let deltas = self.deltas.into_iter().map(|_| unreachable!("it is empty")).collect();
        Room { deltas, order: self.order, namespace_of: self.namespace_of }
    }
}

/// Sorts deltas of one namespace by key and bucket, and deltas of one bucket as the batch has them.
fn sort(order: &mut [Ordered], deltas: &[Delta<'_>]) {
    sort_from(order, deltas, 0);
}

/// Sorts deltas whose keys have their first `depth` bytes in common.
fn sort_from(order: &mut [Ordered], deltas: &[Delta<'_>], depth: usize) {
    let delta = |ordered: &Ordered| &deltas[ordered.number as usize];
    order.sort_unstable_by_key(|ordered| ordered.stretch);
    for alike in order.chunk_by_mut(|one, other| one.stretch == other.stretch) {
        if alike.len() == 1 {
            continue;
        }
        if alike[0].stretch as u8 == MORE {
            let depth = depth + STRETCH;
            for ordered in &mut *alike {
                ordered.stretch = stretch(delta(ordered).key.as_bytes(), depth);
            }
            sort_from(alike, deltas, depth);
        } else {
            alike.sort_unstable_by_key(|ordered| (delta(ordered).bucket_s, ordered.number));
        }
    }
}

/// Seven bytes of a key from `depth` on, zeros behind its end, then how many were left: at most
/// [`MORE`]. Two such numbers compare as the bytes do.
#[inline]
fn stretch(key: &[u8], depth: usize) -> u64 {
    let left = key.len() - depth;
    if let Some(bytes) = key[depth..].first_chunk() {
        return u64::from_be_bytes(*bytes) & !0xff | u64::from(MORE);
    }
    let bytes = match key.last_chunk() {
        // The bytes before `depth` are shifted out, as far as there are any left.
        Some(_) if left == 0 => 0,
        Some(end) => u64::from_be_bytes(*end) << (u64::BITS - 8 * left as u32),
        None => {
            let mut bytes = [0; 8];
            bytes[..left].copy_from_slice(&key[depth..]);
            u64::from_be_bytes(bytes)
        }
    };
    bytes | left as u64
}

/// The slot of `recent` where a namespace is looked for. It is a hash of the name's end, where
/// names that are alike mostly differ.
#[inline]
fn recent_at(namespace: &str) -> usize {
    let bytes = namespace.as_bytes();
    let end = match bytes.last_chunk() {
        Some(end) => u32::from_le_bytes(*end),
        None => bytes.iter().fold(0, |end, byte| end << 8 | u32::from(*byte)),
    };
    let mixed = (end ^ bytes.len() as u32).wrapping_mul(0x9e37_79b1);
    (mixed >> (u32::BITS - RECENT.trailing_zeros())) as usize
}

/// Equality, without a function call for texts of 4 to 16 bytes.
#[inline]
fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    match one.len() {
        length if length != other.len() => false,
        4..8 => {
            one.first_chunk::<4>() == other.first_chunk()
                && one.last_chunk::<4>() == other.last_chunk()
        }
        8..=16 => {
            one.first_chunk::<8>() == other.first_chunk()
                && one.last_chunk::<8>() == other.last_chunk()
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tally_schemas::{DeltaBatchHeader, delta_batch};

    use super::*;

    const HEADER: DeltaBatchHeader<'static> = DeltaBatchHeader {
        topic_id: "id",
        partition: 3,
        from: 10,
        to: 15,
        counted: 4,
        duplicate: 0,
        rejected: 1,
        increments: 9,
        fingerprint: 0,
        correction: false,
    };

    /// Keys that differ late, early, by their lengths and by zeros.
    fn key() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ab\0]{0,9}",
            "(counter-of-things:){0,2}[ab\0]{0,3}",
            ".{0,20}",
            "x{6,9}",
            "[\0]{0,16}"
        ]
    }

    #[test]
    fn texts_are_the_same_if_every_byte_is() {
        for length in 0..40 {
            let text = "abcdefgh".repeat(5)[..length].to_owned();
            assert!(is_same(&text, &text.clone()));
            assert!(!is_same(&text, &format!("{text}a")));
            for at in 0..length {
                let mut other = text.clone();
                other.replace_range(at..=at, "z");
                assert!(!is_same(&text, &other), "{text} and {other}");
            }
        }
    }

    proptest! {
        #[test]
        fn deltas_are_sorted_as_their_keys_and_buckets_are(
            batches in prop::collection::vec(
                prop::collection::vec(("[ab]{0,2}", key(), 0_u32..3, any::<i64>()), 0..60),
                1..3,
            ),
        ) {
            let mut room = Room::default();
            for rows in &batches {
            let batch: Vec<Delta<'_>> = rows
                .iter()
                .map(|(namespace, key, bucket_s, sum)| Delta {
                    namespace,
                    key,
                    bucket_s: *bucket_s,
                    sum: *sum,
                    events: 1,
                })
                .collect();
            let mut body = Vec::new();
            delta_batch::encode(&mut body, &HEADER, batch.iter().copied());
            let read = DeltaBatch::decode(&body).unwrap();
            let sorted = SortedDeltas::read(&read, room).unwrap();
            let namespaces: Vec<&str> = sorted.by_namespace().map(|(name, _)| name).collect();
            let deltas: Vec<Delta<'_>> = sorted
                .by_namespace()
                .flat_map(|(name, deltas)| {
                    deltas.copied().inspect(move |delta| assert_eq!(delta.namespace, name))
                })
                .collect();

            let mut expected = batch;
            expected.sort_by_key(|row| (row.namespace, row.key, row.bucket_s));
            prop_assert_eq!(deltas, expected);
            prop_assert!(namespaces.is_sorted_by(|one, other| one < other));
            room = sorted.into_room();
            }
        }
    }
}
