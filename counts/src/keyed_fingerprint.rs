//! The fingerprint by which a replay and ClickHouse are compared: nobody who does not know the salt
//! can change counts so that it stays the same.
//!
//! ```text
//!  row ──SipHash, keyed by the salt──► weight w, 128 bits ──► its highest bits: the row's range
//!                                         │
//!  Σ w × (sum + c × events), 256 bits, c of the salt too ──► one fingerprint a range
//! ```
//!
//! It is additive, whether or not rows with equal keys were merged, so one replayed from Kafka can
//! be compared with one computed over merged rows.
//!
//! Why it cannot be aimed at: take any change of the counts, made without the salt, that leaves
//! some row different by d = Δsum + c × Δevents. With all other weights given, the fingerprint
//! stays the same for at most one value of that row's w in 2¹²⁸: |d| is below 2¹²⁸, so w × d has
//! 256 bits and loses none. And d is zero for one value of c in 2⁶² at most. SipHash makes the
//! weights unpredictable for whoever has not its key.

use std::ops::{Add, AddAssign, Sub};

use siphasher::sip128::SipHasher24;
use tally_schemas::Delta;

use crate::row_text::{RowText, RowTexts};

/// What makes the weights unpredictable: drawn anew for each comparison, or kept secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt {
    pub(crate) key: [u64; 2],
    /// By how much an event weighs more than a one in the sum: below 2⁶².
    pub(crate) events_factor: u64,
}

impl Salt {
    pub fn from_bytes(bytes: [u8; 24]) -> Salt {
        let word = |at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes are a word"))
        };
        Salt { key: [word(0), word(8)], events_factor: word(16) >> 2 }
    }

    /// In ClickHouse, over the counts table's columns: a row's weight, as a `UInt128`.
    pub fn sql_weight(&self) -> String {
        let [k0, k1] = self.key;
        format!(
            "reinterpretAsUInt128(sipHash128ReferenceKeyed((toUInt64({k0}), toUInt64({k1})), {}))",
            RowText::SQL
        )
    }

    /// In ClickHouse: the range of a row with this weight, as an `Int32`.
    pub fn sql_range(weight: &str) -> String {
        format!("toInt32(bitShiftRight({weight}, {}))", u128::BITS - KeyedFingerprint::RANGE_BITS)
    }

    /// In ClickHouse: the fingerprint of rows with this weight, as a `FixedString(32)`, an
    /// aggregate over rows.
    pub fn sql_fingerprint(&self, weight: &str) -> String {
        let c = self.events_factor;
        format!(
            "toFixedString(reinterpretAsString(sum(toInt256({weight}) * (toInt256(sum) + \
             toInt256(events) * toInt256(toUInt64({c}))))), 32)"
        )
    }
}

/// The fingerprint of a set of counts, modulo 2²⁵⁶.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyedFingerprint {
    low: u128,
    high: u128,
}

impl KeyedFingerprint {
    pub const ZERO: KeyedFingerprint = KeyedFingerprint { low: 0, high: 0 };
    /// Counts are compared in so many ranges, by the highest bits of their weights: a difference
    /// says in which ranges to look for it.
    pub const RANGES: usize = 1 << Self::RANGE_BITS;
    const RANGE_BITS: u32 = 8;

    /// As [`Salt::sql_fingerprint`] answers it: little-endian.
    pub fn from_bytes(bytes: [u8; 32]) -> KeyedFingerprint {
        let half = |at: usize| {
            u128::from_le_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes are a half"))
        };
        KeyedFingerprint { low: half(0), high: half(16) }
    }

    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.low.to_le_bytes());
        bytes[16..].copy_from_slice(&self.high.to_le_bytes());
        bytes
    }

    fn product(weight: u128, by: i128) -> KeyedFingerprint {
        let (low, high) = widening_product(weight, by.unsigned_abs());
        let product = KeyedFingerprint { low, high };
        if by < 0 { KeyedFingerprint::ZERO - product } else { product }
    }
}

/// All 256 bits of a product: its lower and its upper half.
fn widening_product(a: u128, b: u128) -> (u128, u128) {
    const MASK: u128 = u64::MAX as u128;
    let (a0, a1, b0, b1) = (a & MASK, a >> 64, b & MASK, b >> 64);
    let lowest = a0 * b0;
    let middle = a1 * b0 + (lowest >> 64);
    let carried = a0 * b1 + (middle & MASK);
    (carried << 64 | lowest & MASK, a1 * b1 + (middle >> 64) + (carried >> 64))
}

impl Add for KeyedFingerprint {
    type Output = KeyedFingerprint;
    fn add(self, other: KeyedFingerprint) -> KeyedFingerprint {
        let (low, carry) = self.low.overflowing_add(other.low);
        let high = self.high.wrapping_add(other.high).wrapping_add(u128::from(carry));
        KeyedFingerprint { low, high }
    }
}

impl Sub for KeyedFingerprint {
    type Output = KeyedFingerprint;
    fn sub(self, other: KeyedFingerprint) -> KeyedFingerprint {
        let (low, borrow) = self.low.overflowing_sub(other.low);
        let high = self.high.wrapping_sub(other.high).wrapping_sub(u128::from(borrow));
        KeyedFingerprint { low, high }
    }
}

impl AddAssign for KeyedFingerprint {
    fn add_assign(&mut self, other: KeyedFingerprint) {
        *self = *self + other;
    }
}

/// A row's range and fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyedRow {
    pub range: usize,
    pub fingerprint: KeyedFingerprint,
}

/// Computes the keyed fingerprints of rows.
pub struct KeyedFingerprinter {
    hasher: SipHasher24,
    events_factor: i128,
    text: RowText,
}

impl KeyedFingerprinter {
    pub fn new(salt: &Salt) -> KeyedFingerprinter {
        let [k0, k1] = salt.key;
        KeyedFingerprinter {
            hasher: SipHasher24::new_with_keys(k0, k1),
            events_factor: i128::from(salt.events_factor),
            text: RowText::default(),
        }
    }

    /// The range of a cell's rows.
    pub fn range(&mut self, namespace: &str, key: &str, bucket: u32) -> usize {
        range(self.weight(namespace, key, bucket))
    }

    #[inline]
    pub fn row(
        &mut self,
        namespace: &str,
        key: &str,
        bucket: u32,
        sum: i64,
        events: i64,
    ) -> KeyedRow {
        let weight = self.weight(namespace, key, bucket);
        let by = i128::from(sum) + self.events_factor * i128::from(events);
        KeyedRow { range: range(weight), fingerprint: KeyedFingerprint::product(weight, by) }
    }

    fn weight(&mut self, namespace: &str, key: &str, bucket: u32) -> u128 {
        self.hasher.hash(self.text.of(namespace, key, bucket)).as_u128()
    }
}

/// Adds up the keyed fingerprints of rows, by range.
pub struct KeyedFingerprintSums {
    hasher: SipHasher24,
    events_factor: i128,
    texts: RowTexts<i128>,
    of_ranges: Vec<KeyedFingerprint>,
}

impl KeyedFingerprintSums {
    /// Begins at the fingerprints of what was added before, one for each range.
    pub fn resume(salt: &Salt, of_ranges: Vec<KeyedFingerprint>) -> KeyedFingerprintSums {
        let KeyedFingerprinter { hasher, events_factor, .. } = KeyedFingerprinter::new(salt);
        KeyedFingerprintSums { hasher, events_factor, texts: RowTexts::default(), of_ranges }
    }

    pub fn add<'a>(&mut self, rows: impl Iterator<Item = Delta<'a>>) {
        for Delta { namespace, key, bucket_s, sum, events } in rows {
            let by = i128::from(sum) + self.events_factor * i128::from(events);
            if self.texts.push(namespace, key, bucket_s, by) {
                self.hash();
            }
        }
        self.hash();
    }

    fn hash(&mut self) {
        self.texts.drain(|text, by| {
            let weight = self.hasher.hash(text).as_u128();
            self.of_ranges[range(weight)] += KeyedFingerprint::product(weight, by);
        });
    }

    pub fn of_ranges(&self) -> &[KeyedFingerprint] {
        &self.of_ranges
    }
}

fn range(weight: u128) -> usize {
    (weight >> (u128::BITS - KeyedFingerprint::RANGE_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fingerprinter(salt: [u8; 24]) -> KeyedFingerprinter {
        KeyedFingerprinter::new(&Salt::from_bytes(salt))
    }

    proptest! {
        #[test]
        fn rows_with_equal_keys_add_up(
            salt: [u8; 24],
            rows in prop::collection::vec((any::<i64>(), 0i64..1000), 1..20),
        ) {
            let mut rows_of = fingerprinter(salt);
            let apart = rows.iter().map(|(sum, events)| {
                rows_of.row("n", "k", 60, *sum, *events).fingerprint
            });
            let apart = apart.fold(KeyedFingerprint::ZERO, Add::add);
            let weight = rows_of.weight("n", "k", 60);
            let merged = rows.iter().map(|(sum, events)| {
                i128::from(*sum) + rows_of.events_factor * i128::from(*events)
            });
            prop_assert_eq!(apart, KeyedFingerprint::product(weight, merged.sum()));
        }

        #[test]
        fn rows_add_up_in_their_ranges(
            salt: [u8; 24],
            rows in prop::collection::vec((".{0,9}", 0_u32..3, any::<i64>(), any::<i64>()), 0..80),
            cut in 0_usize..80,
        ) {
            let deltas = rows.iter().map(|(key, bucket_s, sum, events)| Delta {
                namespace: "n",
                key,
                bucket_s: *bucket_s,
                sum: *sum,
                events: *events,
            });
            let mut defined = vec![KeyedFingerprint::ZERO; KeyedFingerprint::RANGES];
            let mut one = fingerprinter(salt);
            for Delta { namespace, key, bucket_s, sum, events } in deltas.clone() {
                let row = one.row(namespace, key, bucket_s, sum, events);
                defined[row.range] += row.fingerprint;
            }
            let none = vec![KeyedFingerprint::ZERO; KeyedFingerprint::RANGES];
            let mut sums = KeyedFingerprintSums::resume(&Salt::from_bytes(salt), none);
            sums.add(deltas.clone().take(cut));
            sums.add(deltas.skip(cut));
            prop_assert_eq!(sums.of_ranges(), defined);
        }

        #[test]
        fn any_change_of_one_row_shows(
            salt: [u8; 24],
            sum: i64,
            events: i64,
            other in (any::<i64>(), any::<i64>()),
        ) {
            prop_assume!(other != (sum, events));
            let mut rows = fingerprinter(salt);
            let before = rows.row("n", "k", 60, sum, events);
            prop_assert_ne!(before, rows.row("n", "k", 60, other.0, other.1));
            prop_assert_ne!(before.fingerprint, rows.row("n", "k", 120, sum, events).fingerprint);
        }

        /// Binary expansion makes every product of these three.
        #[test]
        fn a_product_is_made_of_doubles_and_ones(weight: u128, by in -1i128 << 125..1 << 125) {
            let product = |by| KeyedFingerprint::product(weight, by);
            prop_assert_eq!(product(1), KeyedFingerprint { low: weight, high: 0 });
            prop_assert_eq!(product(2 * by), product(by) + product(by));
            prop_assert_eq!(product(by + 1), product(by) + product(1));
        }
    }

    #[test]
    fn a_multiple_of_a_power_of_two_does_not_hide() {
        let mut rows = fingerprinter([7; 24]);
        let weight = rows.weight("n", "a", 0);
        let twice = KeyedFingerprint::product(weight, 1 << 126);
        assert_ne!(twice + twice + twice + twice, KeyedFingerprint::ZERO);
    }

    #[test]
    fn halves_are_little_endian() {
        let two = KeyedFingerprint { low: 1, high: 2 };
        assert_eq!(KeyedFingerprint::from_bytes(two.to_bytes()), two);
        assert_eq!((two.to_bytes()[0], two.to_bytes()[16]), (1, 2));
    }
}
