//! Counters and their sums, and digests of them.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::audit::codec::Increment;

/// The same hashes in every process.
const BUILD_HASHER: BuildHasherDefault<DefaultHasher> = BuildHasherDefault::new();
const BUCKET_MS: i64 = 60_000;

/// Names of counters, each with a number.
#[derive(Default)]
pub(super) struct Names {
    numbers: HashMap<(String, String), u32>,
    names: Vec<(String, String)>,
}

impl Names {
    pub(super) fn number(&mut self, namespace: &str, key: &str) -> u32 {
        let name = (namespace.to_owned(), key.to_owned());
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        let number =
            u32::try_from(self.names.len()).expect("a run has fewer than four billion counters");
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    pub(super) fn name(&self, number: u32) -> (&str, &str) {
        let (namespace, key) = &self.names[number as usize];
        (namespace, key)
    }
}

/// A counter, by its number in [`Names`], in one time bucket, by its start in seconds since 1970.
pub(super) type Cell = (u32, i64);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CellTotal {
    pub(super) sum: i128,
    pub(super) events: i64,
}

pub(super) type CellTotals = HashMap<Cell, CellTotal>;

pub(super) fn add(cells: &mut CellTotals, cell: Cell, sum: i128, events: i64) {
    let total = cells.entry(cell).or_default();
    total.sum += sum;
    total.events += events;
}

pub(super) fn bucket(at_ms: i64) -> i64 {
    at_ms.div_euclid(BUCKET_MS) * (BUCKET_MS / 1000)
}

pub(super) fn cell_of(names: &mut Names, increment: &Increment) -> Cell {
    (names.number(&increment.namespace, &increment.key), bucket(increment.at))
}

/// Digest of many cells and their totals, however they are grouped and ordered: equal totals have
/// equal digests, and different ones have different digests but for a chance of 2⁻⁶⁴.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    sums: u64,
    events: u64,
}

impl Digest {
    pub(super) fn add(&mut self, cell: Cell, sum: i64, events: i64) {
        let weight = |which: u8| BUILD_HASHER.hash_one((which, cell)) | 1;
        self.sums = self.sums.wrapping_add(weight(0).wrapping_mul(sum.cast_unsigned()));
        self.events = self.events.wrapping_add(weight(1).wrapping_mul(events.cast_unsigned()));
    }

    pub(super) fn join(&mut self, other: Digest) {
        self.sums = self.sums.wrapping_add(other.sums);
        self.events = self.events.wrapping_add(other.events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_what_a_plain_sum_does_not() {
        let of = |parts: &[(Cell, i64, i64)]| {
            let mut digest = Digest::default();
            parts.iter().for_each(|(cell, sum, events)| digest.add(*cell, *sum, *events));
            digest
        };
        assert_eq!(of(&[((1, 60), 5, 1), ((1, 60), -2, 1)]), of(&[((1, 60), 3, 2)]));
        assert_ne!(of(&[((1, 60), 5, 1)]), of(&[((2, 60), 5, 1)]));
        assert_ne!(of(&[((1, 60), 5, 1)]), of(&[((1, 120), 5, 1)]));
        assert_ne!(of(&[((1, 60), 5, 1)]), of(&[((1, 60), 5, 2)]));
    }

    #[test]
    fn an_event_before_1970_is_in_the_bucket_before() {
        assert_eq!((bucket(-1), bucket(0), bucket(59_999), bucket(60_000)), (-60, 0, 0, 60));
    }
}
