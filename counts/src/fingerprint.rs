use std::fmt;
use std::ops::{Add, AddAssign};

use xxhash_rust::xxh3::xxh3_64;

/// A fingerprint of a set of counts: Σ (hash(namespace, key, bucket) | 1) × sum, modulo 2⁶⁴.
///
/// It is additive: the fingerprint of two sets of deltas together is the sum of theirs, whether or
/// not rows with equal keys were merged. So one replayed from the log can be compared with one
/// computed over merged rows. The factor is odd, hence invertible: no change of a single sum leaves
/// the fingerprint as it was.
///
/// The hash is XXH3 with 64 bits, seed 0, over the bytes of
/// `{len(namespace)}:{namespace}:{key}:{bucket}`, lengths and seconds in decimal;
/// [`Fingerprint::SQL_ROW`] is the same in ClickHouse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    pub const ZERO: Fingerprint = Fingerprint(0);

    /// One row's share of the fingerprint in ClickHouse, as a `UInt64` over the counts table's
    /// columns; its `sum` wraps as ours does.
    pub const SQL_ROW: &'static str = "bitOr(xxh3(concat(\
         toString(length(namespace)), ':', namespace, ':', key, ':', \
         toString(toUInt32(bucket)))), 1) * reinterpretAsUInt64(sum)";

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

/// Computes the fingerprints of rows. It keeps the buffer whose bytes are hashed, so that a row
/// costs no allocation, and the decimals of the last bucket, which is usually the next row's too.
pub struct Fingerprinter {
    bytes: Vec<u8>,
    bucket: u32,
    decimals: itoa::Buffer,
    /// `:{bucket}` in its first `tail_len` bytes; the rest is not hashed.
    tail: [u8; 16],
    tail_len: usize,
}

impl Default for Fingerprinter {
    fn default() -> Fingerprinter {
        let mut tail = [0; 16];
        tail[..2].copy_from_slice(b":0");
        Fingerprinter {
            bytes: Vec::new(),
            bucket: 0,
            decimals: itoa::Buffer::new(),
            tail,
            tail_len: 2,
        }
    }
}

impl Fingerprinter {
    /// The fingerprint of one row, as [`Fingerprint::of_row`].
    #[inline]
    pub fn row(&mut self, namespace: &str, key: &str, bucket: u32, sum: i64) -> Fingerprint {
        if bucket != self.bucket {
            self.turn_to(bucket);
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(self.decimals.format(namespace.len()).as_bytes());
        self.bytes.push(b':');
        self.bytes.extend_from_slice(namespace.as_bytes());
        self.bytes.push(b':');
        self.bytes.extend_from_slice(key.as_bytes());
        let len = self.bytes.len() + self.tail_len;
        self.bytes.extend_from_slice(&self.tail);
        Fingerprint((xxh3_64(&self.bytes[..len]) | 1).wrapping_mul(sum.cast_unsigned()))
    }

    fn turn_to(&mut self, bucket: u32) {
        let decimals = self.decimals.format(bucket).as_bytes();
        self.tail[1..=decimals.len()].copy_from_slice(decimals);
        self.tail_len = 1 + decimals.len();
        self.bucket = bucket;
    }
}

impl Fingerprint {
    /// The fingerprint of one row. `sum` may be negative: two's complement wraps as ClickHouse's
    /// does.
    pub fn of_row(namespace: &str, key: &str, bucket: u32, sum: i64) -> Fingerprint {
        Fingerprinter::default().row(namespace, key, bucket, sum)
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
        fn a_row_is_hashed_as_defined(
            rows in prop::collection::vec(
                (".{0,12}", ".{0,40}", prop_oneof![Just(60), any::<u32>()], any::<i64>()),
                0..20,
            ),
        ) {
            let mut fingerprinter = Fingerprinter::default();
            for (namespace, key, bucket, sum) in rows {
                let text = format!("{}:{namespace}:{key}:{bucket}", namespace.len());
                let defined = (xxh3_64(text.as_bytes()) | 1).wrapping_mul(sum.cast_unsigned());
                let row = fingerprinter.row(&namespace, &key, bucket, sum);
                prop_assert_eq!(row.to_bits(), defined);
            }
        }
    }

    #[test]
    fn where_one_name_ends_matters() {
        assert_ne!(Fingerprint::of_row("ab", "c", 0, 1), Fingerprint::of_row("a", "bc", 0, 1));
        assert_ne!(Fingerprint::of_row("a", "b:c", 0, 1), Fingerprint::of_row("a:b", "c", 0, 1));
        assert_ne!(Fingerprint::of_row("a", "b", 12, 1), Fingerprint::of_row("a", "b:1", 2, 1));
    }
}
