//! The order in which ClickHouse keeps rows: by namespace, key and bucket. A block that comes in
//! this order need not be sorted by ClickHouse, to which that is half of what an insert costs.
//!
//! ```text
//!  batch ──► rows, one after the other ──by namespace──► seven bytes of the key ──► sort
//!                                                           ▲                        │
//!                                                           └─ the next, of those ◄──┘
//!                                                              that are alike
//! ```
//!
//! A key is compared as one number, and what all keys begin with costs one look at each. The dear
//! part is that rows in order lie anywhere in memory, so a row lies in one place, and is small.

use std::ops::Range;

use hashbrown::HashMap;
use tally_schemas::{DecodeError, Delta, DeltaBatch};

/// The rows of one batch at a time, in order.
#[derive(Default)]
pub(crate) struct RowOrder {
    /// The rows in the order of the batch, see [`Row::write`].
    rows: Vec<u8>,
    /// The number of each row's namespace.
    namespace_of: Vec<u32>,
    order: Vec<Ordered>,
}

/// A namespace of a batch, and which rows are its own.
pub(crate) struct Namespace<'a> {
    pub(crate) name: &'a str,
    rows: Range<usize>,
}

/// A row of one namespace.
pub(crate) struct Row<'r> {
    pub(crate) key: &'r [u8],
    pub(crate) bucket_s: u32,
    pub(crate) sum: i64,
    pub(crate) events: i64,
}

/// A row, as it is sorted.
#[derive(Clone, Copy, Default)]
struct Ordered {
    /// Bytes of the key, see [`stretch`].
    stretch: u64,
    /// Where the row lies.
    at: u32,
}

/// The bytes of a key that one comparison looks at.
const STRETCH: usize = 7;
/// What a stretch says of the bytes left if there are more than those in it.
const MORE: u8 = STRETCH as u8 + 1;

/// The namespaces whose numbers are found without a hash.
const RECENT: usize = 64;

/// So many rows are looked up before the first of them is needed.
const AHEAD: usize = 32;

impl RowOrder {
    /// Takes the deltas of a batch in place of the last one's, and shows each of them to `each`.
    /// Returns the namespaces in order.
    ///
    /// # Panics
    /// If the rows take more than 4 GiB. A row takes at most 20 bytes more than in the batch, and
    /// at least five there, so batches of up to 800 MiB fit.
    pub(crate) fn take<'a>(
        &mut self,
        batch: &DeltaBatch<'a>,
        each: impl FnMut(&Delta<'a>),
    ) -> Result<Vec<Namespace<'a>>, DecodeError> {
        let mut namespaces = self.read(batch, each)?;
        self.group(&mut namespaces);
        Ok(namespaces)
    }

    /// Sorts the rows of each namespace, which are in the order of the batch before.
    pub(crate) fn sort(&mut self, namespaces: &[Namespace<'_>]) {
        for namespace in namespaces {
            sort(&mut self.order[namespace.rows.clone()], &self.rows, 0);
        }
    }

    /// Reads a batch, and numbers and counts its namespaces as they come.
    fn read<'a>(
        &mut self,
        batch: &DeltaBatch<'a>,
        mut each: impl FnMut(&Delta<'a>),
    ) -> Result<Vec<Namespace<'a>>, DecodeError> {
        self.rows.clear();
        self.namespace_of.clear();
        self.namespace_of.reserve(batch.deltas.announced());
        let mut namespaces: Vec<Namespace<'a>> = Vec::new();
        let mut numbers = HashMap::new();
        // A batch mostly has few namespaces, and finds them here without a hash.
        let mut recent: [Option<(&str, u32)>; RECENT] = [None; RECENT];
        for delta in batch.deltas.clone() {
            let delta = delta?;
            each(&delta);
            let Delta { namespace: name, key, bucket_s, sum, events } = delta;
            let recent = &mut recent[recent_at(name)];
            let number = match *recent {
                Some((recent, number)) if is_same(recent, name) => number,
                _ => {
                    let number = *numbers.entry(name).or_insert_with(|| {
                        namespaces.push(Namespace { name, rows: 0..0 });
                        namespaces.len() as u32 - 1
                    });
                    *recent = Some((name, number));
                    number
                }
            };
            namespaces[number as usize].rows.end += 1;
            self.namespace_of.push(number);
            Row { key: key.as_bytes(), bucket_s, sum, events }.write(&mut self.rows);
        }
        Ok(namespaces)
    }

    /// Puts the rows of each namespace together, and the namespaces in order.
    fn group(&mut self, namespaces: &mut [Namespace<'_>]) {
        let mut ranks: Vec<usize> = (0..namespaces.len()).collect();
        ranks.sort_unstable_by_key(|&number| namespaces[number].name);
        // Where the next row of each namespace goes.
        let mut next = vec![0; namespaces.len()];
        let mut end = 0;
        for number in ranks {
            let rows = &mut namespaces[number].rows;
            *rows = end..end + rows.len();
            next[number] = rows.start;
            end = rows.end;
        }
        self.order.clear();
        self.order.resize(self.namespace_of.len(), Ordered::default());
        let mut at = 0;
        for &namespace in &self.namespace_of {
            let key = Row::read(&self.rows, at).key;
            let next = &mut next[namespace as usize];
            self.order[*next] = Ordered { stretch: stretch(key, 0), at };
            *next += 1;
            at = u32::try_from(at as usize + Row::HEAD_BYTES + key.len())
                .expect("rows take less than 4 GiB");
        }
        namespaces.sort_unstable_by_key(|namespace| namespace.name);
    }

    /// Each row of a namespace, in order.
    pub(crate) fn for_each(&self, namespace: &Namespace<'_>, mut each: impl FnMut(Row<'_>)) {
        for ahead in self.order[namespace.rows.clone()].chunks(AHEAD) {
            // The processor fetches all of them at once, in place of one after the other.
            let fetched = ahead.iter().fold(0, |all, row| all ^ self.rows[row.at as usize]);
            std::hint::black_box(fetched);
            for row in ahead {
                each(Row::read(&self.rows, row.at));
            }
        }
    }
}

impl Row<'_> {
    /// What the numbers of a row and the length of its key take.
    const HEAD_BYTES: usize = 24;

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        let mut head = [0; Self::HEAD_BYTES];
        head[..8].copy_from_slice(&self.sum.to_le_bytes());
        head[8..16].copy_from_slice(&self.events.to_le_bytes());
        head[16..20].copy_from_slice(&self.bucket_s.to_le_bytes());
        head[20..].copy_from_slice(&(self.key.len() as u32).to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(self.key);
    }

    #[inline]
    fn read(rows: &[u8], at: u32) -> Row<'_> {
        fn number<const N: usize>(head: &[u8; Row::HEAD_BYTES], at: usize) -> [u8; N] {
            *head[at..].first_chunk().expect("the head has it")
        }
        let (head, rest) = rows[at as usize..].split_first_chunk().expect("a row lies there");
        Row {
            sum: i64::from_le_bytes(number(head, 0)),
            events: i64::from_le_bytes(number(head, 8)),
            bucket_s: u32::from_le_bytes(number(head, 16)),
            key: &rest[..u32::from_le_bytes(number(head, 20)) as usize],
        }
    }
}

/// Sorts rows whose keys have their first `depth` bytes in common; those of one counter's bucket as
/// the batch has them.
fn sort(order: &mut [Ordered], rows: &[u8], depth: usize) {
    order.sort_unstable_by_key(|row| row.stretch);
    for alike in order.chunk_by_mut(|one, other| one.stretch == other.stretch) {
        if alike.len() == 1 {
            continue;
        }
        if alike[0].stretch as u8 == MORE {
            let depth = depth + STRETCH;
            for row in &mut *alike {
                row.stretch = stretch(Row::read(rows, row.at).key, depth);
            }
            sort(alike, rows, depth);
        } else {
            alike.sort_unstable_by_key(|row| (Row::read(rows, row.at).bucket_s, row.at));
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
    use tally_schemas::delta_batch;

    use super::*;
    use crate::block::tests::HEADER;

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
        fn rows_are_in_the_order_of_their_names_and_buckets(
            batches in prop::collection::vec(
                prop::collection::vec(("[ab]{0,2}", key(), 0_u32..3, any::<i64>()), 0..60),
                1..3,
            ),
        ) {
            let mut order = RowOrder::default();
            for mut rows in batches {
                let deltas = rows.iter().map(|(namespace, key, bucket_s, sum)| {
                    Delta { namespace, key, bucket_s: *bucket_s, sum: *sum, events: !*sum }
                });
                let mut body = Vec::new();
                delta_batch::encode(&mut body, &HEADER, deltas);
                let batch = DeltaBatch::decode(&body).unwrap();
                let mut seen = 0;
                let namespaces = order.take(&batch, |_| seen += 1).unwrap();
                order.sort(&namespaces);
                prop_assert_eq!(seen, rows.len());
                prop_assert!(namespaces.is_sorted_by(|one, other| one.name < other.name));
                let mut sorted = Vec::new();
                for namespace in &namespaces {
                    order.for_each(namespace, |Row { key, bucket_s, sum, events }| {
                        assert_eq!(events, !sum);
                        let key = String::from_utf8(key.to_owned()).unwrap();
                        sorted.push((namespace.name.to_owned(), key, bucket_s, sum));
                    });
                }
                rows.sort_by_key(|(name, key, bucket_s, _)| (name.clone(), key.clone(), *bucket_s));
                prop_assert_eq!(sorted, rows);
            }
        }
    }
}
