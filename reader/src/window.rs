//! The unstored window: what was tailed and may be missing from a snapshot of the store.
//!
//! ```text
//!  batches of one partition:   … 3  4  5  6  7  8  9 │ not tailed yet
//!                                    ▲           ▲
//!                                    floor       tail
//!                                    └── kept ───┘
//! ```
//!
//! Everything tailed at or beyond a partition's floor is here. A snapshot at or beyond the floor is
//! therefore made whole by the deltas from the snapshot's position on; one below the floor cannot
//! be.
//!
//! Batches are kept as they came: far more deltas come in than are ever asked for, so there is no
//! index to keep, and a search passes over the hashes of all of them. It does so under the memory's
//! lock: a window of a million deltas takes about 0.6 ms for one counter and up to 5 ms for a
//! thousand.

mod deltas;
mod sought;

use std::collections::VecDeque;

pub(crate) use deltas::{Delta, Deltas, Packer};
pub(crate) use sought::Sought;

use crate::vector::Vector;

/// One batch of `deltas`, read and checked, not yet counted in.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) partition: usize,
    /// Its own offset in `deltas`.
    pub(crate) offset: i64,
    /// The offsets of `increments` that it is of.
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) deltas: Deltas,
}

impl Arrival {
    /// What it takes in the window.
    pub(crate) fn bytes(&self) -> usize {
        self.deltas.bytes()
    }
}

pub(crate) struct Window {
    partitions: Vec<Partition>,
    bytes: usize,
}

struct Partition {
    /// The next offset of `deltas` below which nothing is kept.
    floor: i64,
    /// In the order of their offsets.
    batches: VecDeque<Arrival>,
}

impl Window {
    pub(crate) fn new(start: &Vector) -> Window {
        let partition = |floor| Partition { floor, batches: VecDeque::new() };
        let partitions = start.iter().map(|(_, place)| partition(place.deltas)).collect();
        Window { partitions, bytes: 0 }
    }

    pub(crate) fn floor(&self, partition: usize) -> i64 {
        self.partitions[partition].floor
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a batch, unless every snapshot to come has it.
    pub(crate) fn push(&mut self, arrival: Arrival) {
        let partition = &mut self.partitions[arrival.partition];
        if arrival.offset >= partition.floor {
            self.bytes += arrival.bytes();
            partition.batches.push_back(arrival);
        }
    }

    /// Moves a partition's floor up to `floor`, and lets go of what is below it.
    pub(crate) fn trim(&mut self, partition: usize, floor: i64) {
        let partition = &mut self.partitions[partition];
        partition.floor = partition.floor.max(floor);
        while let Some(batch) =
            partition.batches.pop_front_if(|batch| batch.offset < partition.floor)
        {
            self.bytes -= batch.bytes();
        }
    }

    /// Gives `found` each delta of the counters that are sought, with the counter's place among
    /// them, in the batches that a snapshot at `vector` lacks.
    pub(crate) fn search(
        &self,
        sought: &Sought<'_>,
        vector: &Vector,
        mut found: impl FnMut(usize, Delta<'_>),
    ) {
        for (partition, (_, place)) in self.partitions.iter().zip(vector.iter()) {
            debug_assert!(
                place.deltas >= partition.floor,
                "a snapshot below the floor cannot be made whole"
            );
            let lacking = partition.batches.partition_point(|batch| batch.offset < place.deltas);
            for batch in partition.batches.range(lacking..) {
                for (index, hash) in batch.deltas.hashes().iter().enumerate() {
                    if sought.may_be(*hash) {
                        let delta = batch.deltas.at(index);
                        if let Some(place) = sought.place(delta.name) {
                            found(place, delta);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::{Counter, Name};
    use tally_counts::StoredOffsets;

    fn arrival(offset: i64, gains: &[(&str, u32, i64)]) -> Arrival {
        let mut packer = Packer::with_room(0, 0);
        for &(key, bucket_s, sum) in gains {
            packer.push(Delta { name: Name::new("ns", key), bucket_s, sum, events: 1 });
        }
        Arrival { partition: 0, offset, from: offset, to: offset + 1, deltas: packer.finish() }
    }

    fn at(deltas: i64) -> Vector {
        Vector::new(vec![StoredOffsets { deltas, increments: deltas }])
    }

    fn sums<const N: usize>(window: &Window, keys: [&str; N], vector: &Vector) -> [i64; N] {
        let counters = keys.map(|key| Counter::new("ns", key));
        let mut sums = [0; N];
        window.search(&Sought::new(&counters), vector, |place, delta| sums[place] += delta.sum);
        sums
    }

    #[test]
    fn a_snapshot_gets_the_batches_from_its_position_on() {
        let mut window = Window::new(&at(0));
        window.push(arrival(0, &[("a", 0, 1), ("a", 60, 2), ("b", 0, 4)]));
        window.push(arrival(2, &[("a", 0, 8)]));
        assert_eq!(sums(&window, ["a", "b", "c"], &at(0)), [11, 4, 0]);
        assert_eq!(sums(&window, ["b", "a"], &at(1)), [0, 8]);
        assert_eq!(sums(&window, ["a"], &at(3)), [0]);
    }

    #[test]
    fn trimming_lets_go_of_everything_below_the_floor_and_its_bytes() {
        let mut window = Window::new(&at(0));
        window.push(arrival(0, &[("a", 0, 1), ("a", 60, 2), ("b", 0, 4)]));
        window.push(arrival(2, &[("a", 0, 8)]));
        let last = arrival(2, &[("a", 0, 8)]).bytes();
        window.trim(0, 1);
        assert_eq!((window.bytes(), window.floor(0)), (last, 1));
        assert_eq!(sums(&window, ["a"], &at(1)), [8]);
        window.trim(0, 3);
        assert_eq!(window.bytes(), 0);
        assert!(window.partitions[0].batches.is_empty());
        window.push(arrival(2, &[("a", 0, 8)]));
        assert_eq!(window.bytes(), 0, "what is below the floor is not kept");
        window.trim(0, 1);
        assert_eq!(window.floor(0), 3, "a floor never sinks");
    }
}
