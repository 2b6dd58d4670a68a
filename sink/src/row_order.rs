//! The order in which ClickHouse keeps rows: by namespace, key and bucket. A block that comes in
//! this order need not be sorted by ClickHouse, whose sort costs more than the rest of the insert.
//!
//! ```text
//!  namespace's rank │ seven bytes of the key │ how many are left ──► sort ──► runs that are alike
//!                            ▲                                                   │
//!                            └──────────── the next seven bytes of each ◄────────┘
//! ```
//!
//! So a key is looked at as one number, in the place where it lies, and only where it matters: what
//! all keys begin with costs one look at each.

use tally_schemas::{DeltaBatch, DeltaPlace};

/// One delta of a batch, as it is sorted.
#[derive(Clone, Copy)]
pub(crate) struct OrderedDelta {
    /// Bytes of the key, see [`stretch`].
    stretch: u64,
    /// The number of its namespace.
    pub(crate) namespace: u32,
    pub(crate) place: DeltaPlace,
}

/// The bytes of a key that one comparison looks at.
const STRETCH: usize = 7;
/// What a stretch says of the bytes left if there are more than those in it.
const MORE: u64 = STRETCH as u64 + 1;

impl OrderedDelta {
    pub(crate) fn new(namespace: u32, key: &str, place: DeltaPlace) -> OrderedDelta {
        OrderedDelta { stretch: stretch(key.as_bytes(), 0), namespace, place }
    }

    #[inline]
    fn rank(&self) -> (u32, u64) {
        (self.namespace, self.stretch)
    }
}

/// Sorts the deltas of a batch by the numbers of their namespaces, then by key and bucket.
pub(crate) fn sort(deltas: &mut [OrderedDelta], batch: &DeltaBatch<'_>) {
    sort_from(deltas, batch, 0);
}

/// Sorts deltas whose keys have their first `depth` bytes in common.
fn sort_from(deltas: &mut [OrderedDelta], batch: &DeltaBatch<'_>, depth: usize) {
    deltas.sort_unstable_by_key(OrderedDelta::rank);
    for alike in deltas.chunk_by_mut(|one, other| one.rank() == other.rank()) {
        if alike.len() == 1 {
            continue;
        }
        if alike[0].stretch as u8 == MORE as u8 {
            let depth = depth + STRETCH;
            for delta in &mut *alike {
                delta.stretch = stretch(batch.delta(delta.place).key.as_bytes(), depth);
            }
            sort_from(alike, batch, depth);
        } else {
            // A counter's deltas. Those of one bucket are kept as the batch has them.
            alike.sort_unstable_by_key(|delta| (batch.delta(delta.place).bucket_s, delta.place));
        }
    }
}

/// Seven bytes of a key from `depth` on, zeros behind its end, then how many were left: at most
/// [`MORE`]. Two such numbers compare as the bytes do.
#[inline]
fn stretch(key: &[u8], depth: usize) -> u64 {
    let left = key.len() - depth;
    if let Some(bytes) = key[depth..].first_chunk() {
        return u64::from_be_bytes(*bytes) & !0xff | MORE;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tally_schemas::{Delta, DeltaBatchHeader, delta_batch};

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

    proptest! {
        #[test]
        fn deltas_are_sorted_as_their_names_and_buckets_are(
            rows in prop::collection::vec((0_u32..3, key(), 0_u32..3, any::<i64>()), 0..60),
        ) {
            let mut body = Vec::new();
            let deltas: Vec<Delta<'_>> = rows
                .iter()
                .map(|(_, key, bucket_s, sum)| Delta {
                    namespace: "",
                    key,
                    bucket_s: *bucket_s,
                    sum: *sum,
                    events: 1,
                })
                .collect();
            delta_batch::encode(&mut body, &HEADER, deltas.iter().copied());
            let batch = DeltaBatch::decode(&body).unwrap();

            let mut ordered: Vec<OrderedDelta> = batch
                .placed()
                .zip(&rows)
                .map(|(read, (namespace, ..))| {
                    let (place, delta) = read.unwrap();
                    OrderedDelta::new(*namespace, delta.key, place)
                })
                .collect();
            sort(&mut ordered, &batch);
            let sorted: Vec<_> = ordered
                .iter()
                .map(|entry| {
                    let delta = batch.delta(entry.place);
                    (entry.namespace, delta.key.to_owned(), delta.bucket_s, delta.sum)
                })
                .collect();

            let mut expected = rows;
            expected.sort_by(|one, other| {
                (one.0, one.1.as_bytes(), one.2).cmp(&(other.0, other.1.as_bytes(), other.2))
            });
            prop_assert_eq!(sorted, expected);
        }
    }
}
