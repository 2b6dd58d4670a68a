use std::fmt;
use std::ops::{Add, AddAssign};

use xxhash_rust::xxh3::xxh3_64;

use crate::row_text::{RowText, RowTexts};

/// A fingerprint of the deltas of one batch: Σ (hash(namespace, key, bucket) | 1) × sum, modulo
/// 2⁶⁴.
///
/// It is additive, so rows with equal keys may be merged or not. It guards a batch against damage
/// on its way; whoever can write batches can forge it. What is proven, is proven with a
/// [`crate::KeyedFingerprint`].
///
/// The hash is XXH3 with 64 bits, seed 0, over the row's text ([`RowText`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    pub const ZERO: Fingerprint = Fingerprint(0);

    /// One row's share of the fingerprint in ClickHouse, as a `UInt64` over the counts table's
    /// columns; its sum wraps as ours does.
    pub fn sql_row() -> String {
        format!(
            "bitOr(xxh3({}), 1) * (sum_low + bitShiftLeft(reinterpretAsUInt64(sum_high), 32))",
            RowText::SQL
        )
    }

    pub fn from_bits(bits: u64) -> Fingerprint {
        Fingerprint(bits)
    }

    pub fn to_bits(self) -> u64 {
        self.0
    }
}

impl Add for Fingerprint {
    type Output = Fingerprint;
    fn add(self, other: Fingerprint) -> Fingerprint {
        Fingerprint(self.0.wrapping_add(other.0))
    }
}

impl AddAssign for Fingerprint {
    fn add_assign(&mut self, other: Fingerprint) {
        *self = *self + other;
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Adds up the fingerprints of rows.
#[derive(Default)]
pub struct FingerprintSum {
    texts: RowTexts<i64>,
    sum: Fingerprint,
}

impl FingerprintSum {
    #[inline]
    pub fn add(&mut self, namespace: &str, key: &str, bucket: u32, sum: i64) {
        if self.texts.push(namespace, key, bucket, sum) {
            self.hash();
        }
    }

    /// The sum, from which it begins anew.
    pub fn take(&mut self) -> Fingerprint {
        self.hash();
        std::mem::take(&mut self.sum)
    }

    fn hash(&mut self) {
        self.texts.drain(|text, sum| {
            self.sum += Fingerprint((xxh3_64(text) | 1).wrapping_mul(sum.cast_unsigned()));
        });
    }
}

impl Fingerprint {
    /// The fingerprint of one row. `sum` may be negative: two's complement wraps.
    pub fn of_row(namespace: &str, key: &str, bucket: u32, sum: i64) -> Fingerprint {
        let mut one = FingerprintSum::default();
        one.add(namespace, key, bucket, sum);
        one.take()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn merging_rows_with_equal_keys_keeps_the_fingerprint(
            ns in ".{0,12}",
            key in ".{0,40}",
            bucket: u32,
            a: i64,
            b: i64,
        ) {
            let row = |sum| Fingerprint::of_row(&ns, &key, bucket, sum);
            prop_assert_eq!(row(a) + row(b), row(a.wrapping_add(b)));
        }

        #[test]
        fn a_changed_sum_changes_the_fingerprint(key in ".{0,40}", bucket: u32, a: i64, b: i64) {
            prop_assume!(a != b);
            let row = |sum| Fingerprint::of_row("ns", &key, bucket, sum);
            prop_assert_ne!(row(a), row(b));
        }
    }

    proptest! {
        /// As the definition says it, whatever rows came before.
        #[test]
        fn rows_are_hashed_and_added_up_as_defined(
            rows in prop::collection::vec(
                (".{0,12}", ".{0,40}", prop_oneof![Just(60), any::<u32>()], any::<i64>()),
                0..80,
            ),
        ) {
            let mut found = FingerprintSum::default();
            let mut defined = 0_u64;
            for (namespace, key, bucket, sum) in rows {
                let text = format!("{}:{namespace}:{key}:{bucket}", namespace.len());
                let row = (xxh3_64(text.as_bytes()) | 1).wrapping_mul(sum.cast_unsigned());
                defined = defined.wrapping_add(row);
                found.add(&namespace, &key, bucket, sum);
            }
            prop_assert_eq!(found.take().to_bits(), defined);
            prop_assert_eq!(found.take(), Fingerprint::ZERO);
        }
    }

    #[test]
    fn where_one_name_ends_matters() {
        assert_ne!(Fingerprint::of_row("ab", "c", 0, 1), Fingerprint::of_row("a", "bc", 0, 1));
        assert_ne!(Fingerprint::of_row("a", "b:c", 0, 1), Fingerprint::of_row("a:b", "c", 0, 1));
        assert_ne!(Fingerprint::of_row("a", "b", 12, 1), Fingerprint::of_row("a", "b:1", 2, 1));
    }
}
