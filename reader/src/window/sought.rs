//! The counters that one pass over the window looks for.
//!
//! ```text
//!  a delta's hash ──filter: one bit──► no, nearly always
//!                          └─ maybe ──► table ──the name──► which of the counters, if any
//! ```

use hashbrown::HashTable;

use crate::counter::{Counter, Name, NameHash, Named};

const FILTER_BITS: usize = 1 << 16;

pub(crate) struct Sought<'a> {
    counters: &'a [Counter],
    filter: Box<[u64]>,
    /// The place in `counters` of the first of those that are the same.
    table: HashTable<usize>,
}

impl<'a> Sought<'a> {
    pub(crate) fn new(counters: &'a [Counter]) -> Sought<'a> {
        let mut filter = vec![0; FILTER_BITS / 64].into_boxed_slice();
        let mut table = HashTable::with_capacity(counters.len());
        for (place, counter) in counters.iter().enumerate() {
            let hash = counter.name_hash();
            let (word, bit) = filter_bit(hash);
            filter[word] |= bit;
            let same = |other: &usize| counters[*other] == *counter;
            let rehash = |other: &usize| spread(counters[*other].name_hash());
            table.entry(spread(hash), same, rehash).or_insert(place);
        }
        Sought { counters, filter, table }
    }

    pub(crate) fn may_be(&self, hash: NameHash) -> bool {
        let (word, bit) = filter_bit(hash);
        self.filter[word] & bit != 0
    }

    /// The place of the counter of this name among those sought: of equal ones, the first.
    pub(crate) fn place(&self, name: Name<'_>) -> Option<usize> {
        self.table
            .find(spread(name.name_hash()), |place| self.counters[*place].name() == name)
            .copied()
    }
}

fn filter_bit(hash: NameHash) -> (usize, u64) {
    let bit = hash.bits() as usize % FILTER_BITS;
    (bit / 64, 1 << (bit % 64))
}

/// The table takes a tag from the upper bits, and a place from the lower.
fn spread(hash: NameHash) -> u64 {
    let bits = u64::from(hash.bits());
    bits << 32 | bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_found_at_its_first_place_and_nothing_else() {
        let counters = ["a", "b", "a", ""].map(|key| Counter::new("ns", key));
        let sought = Sought::new(&counters);
        let place = |namespace, key| sought.place(Name::new(namespace, key));
        assert_eq!(
            [place("ns", "a"), place("ns", "b"), place("ns", "")],
            [Some(0), Some(1), Some(3)]
        );
        assert_eq!([place("ns", "c"), place("n", "sa")], [None, None]);
        assert!(counters.iter().all(|counter| sought.may_be(counter.name_hash())));
        assert!(!Sought::new(&[]).may_be(counters[0].name_hash()));
    }
}
