//! A fingerprint that costs ClickHouse a third of a [`crate::KeyedFingerprint`]: for looks at new
//! rows between two looks at all of them.
//!
//! ```text
//!  w = mix(XXH3(key) + a × bucket + b × XXH3(namespace)), its lowest bit set, 64 bits
//!  Σ w × (sum + c × events), modulo 2¹²⁸; a, b and c of the salt
//! ```
//!
//! A change of one row always shows: w is odd. One of more rows stays unseen for one salt in some
//! 2⁶⁰, unless it moves counts between two keys of one XXH3, which somebody can choose: that shows
//! at the next look at all rows.

use std::ops::{Add, AddAssign};

use xxhash_rust::xxh3::xxh3_64;

use crate::Salt;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuickFingerprint(i128);

impl QuickFingerprint {
    pub const ZERO: QuickFingerprint = QuickFingerprint(0);

    /// As [`Salt::sql_quick_fingerprint`] answers it.
    pub fn from_bits(bits: i128) -> QuickFingerprint {
        QuickFingerprint(bits)
    }
}

impl Add for QuickFingerprint {
    type Output = QuickFingerprint;
    fn add(self, other: QuickFingerprint) -> QuickFingerprint {
        QuickFingerprint(self.0.wrapping_add(other.0))
    }
}

impl AddAssign for QuickFingerprint {
    fn add_assign(&mut self, other: QuickFingerprint) {
        *self = *self + other;
    }
}

impl Salt {
    /// In ClickHouse, over the counts table's columns: the quick fingerprint of rows, as an
    /// `Int128`, an aggregate over rows.
    pub fn sql_quick_fingerprint(&self) -> String {
        let ([a, b], c) = (self.key, self.events_factor);
        format!(
            "sum(toInt128(bitOr(intHash64(xxh3(key) + toUInt32(bucket) * toUInt64({a}) + \
             xxh3(namespace) * toUInt64({b})), 1)) * (sum + toInt128(events) * toUInt64({c})))"
        )
    }

    /// The quick fingerprint of one row.
    #[inline]
    pub fn quick_fingerprint(
        &self,
        namespace: &str,
        key: &str,
        bucket: u32,
        sum: i64,
        events: i64,
    ) -> QuickFingerprint {
        let [a, b] = self.key;
        let hash = xxh3_64(key.as_bytes())
            .wrapping_add(a.wrapping_mul(bucket.into()))
            .wrapping_add(b.wrapping_mul(xxh3_64(namespace.as_bytes())));
        let weight = i128::from(mix(hash) | 1);
        let by = i128::from(sum) + i128::from(self.events_factor) * i128::from(events);
        QuickFingerprint(weight.wrapping_mul(by))
    }
}

/// ClickHouse's intHash64: a constant, and the mix of MurmurHash3.
fn mix(mut hash: u64) -> u64 {
    hash ^= 0x4cf2_d2ba_ae6d_a887;
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_change_of_one_row_shows(
            salt: [u8; 24],
            sum: i64,
            events: i64,
            other in (any::<i64>(), any::<i64>()),
        ) {
            prop_assume!(other != (sum, events));
            let salt = Salt::from_bytes(salt);
            let of = |(sum, events)| salt.quick_fingerprint("n", "k", 60, sum, events);
            prop_assert_ne!(of((sum, events)), of(other));
        }

        #[test]
        fn what_moves_between_rows_shows(
            salt: [u8; 24],
            key in "[a-z]{1,8}",
            sum in 1..i64::MAX,
        ) {
            let salt = Salt::from_bytes(salt);
            let of = |namespace, key: &str, bucket| {
                salt.quick_fingerprint(namespace, key, bucket, sum, 1)
            };
            let row = of("n", &key, 60);
            prop_assert_ne!(row, of("n", &format!("{key}x"), 60));
            prop_assert_ne!(row, of("m", &key, 60));
            prop_assert_ne!(row, of("n", &key, 120));
        }

        #[test]
        fn rows_with_equal_keys_add_up(salt: [u8; 24], a in any::<i32>(), b in any::<i32>()) {
            let salt = Salt::from_bytes(salt);
            let of = |sum, events| salt.quick_fingerprint("n", "k", 60, sum, events);
            let (a, b) = (i64::from(a), i64::from(b));
            prop_assert_eq!(of(a, 1) + of(b, 2), of(a + b, 3));
        }
    }
}
