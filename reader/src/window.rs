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
        size_of::<Arrival>() - size_of::<Deltas>() + self.deltas.bytes()
    }
}

pub(crate) struct Window {
    partitions: Vec<Partition>,
    bytes: usize,
}

#[derive(Default)]
struct Partition {
    /// The next offset of `deltas` below which nothing is kept.
    floor: i64,
    /// In the order of their offsets.
    batches: VecDeque<Arrival>,
    /// What the batches take.
    bytes: usize,
}

impl Window {
    pub(crate) fn new(start: &Vector) -> Window {
        let partition = |floor| Partition { floor, ..Partition::default() };
        let partitions = start.iter().map(|(_, place)| partition(place.deltas)).collect();
        Window { partitions, bytes: 0 }
    }

    /// Has at least as many partitions, those that are new at their beginning.
    pub(crate) fn grow(&mut self, partitions: usize) {
        let partitions = self.partitions.len().max(partitions);
        self.partitions.resize_with(partitions, Partition::default);
    }

    pub(crate) fn floor(&self, partition: usize) -> i64 {
        self.partitions.get(partition).map_or(0, |partition| partition.floor)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is kept of one partition.
    pub(crate) fn bytes_of(&self, partition: usize) -> usize {
        self.partitions[partition].bytes
    }

    /// Whether `partition` may keep `bytes` more, where all together may keep `budget`.
    ///
    /// Half of the budget is the partitions' own, in equal shares. The other half is lent to those
    /// that need more, and to none more of it than is left for the others: so partitions that the
    /// store does not take never leave the others without room. A batch that has its partition's
    /// window to itself always fits, or else a large one would never be read.
    pub(crate) fn has_room(&self, partition: usize, bytes: usize, budget: usize) -> bool {
        let own = budget / 2 / self.partitions.len();
        let kept = self.partitions[partition].bytes;
        if kept == 0 || kept + bytes <= own {
            return true;
        }
        let is_other = |(other, _): &(usize, &Partition)| *other != partition;
        let others = self.partitions.iter().enumerate().filter(is_other);
        let lent: usize = others.map(|(_, other)| other.bytes.saturating_sub(own)).sum();
        let borrowed = kept + bytes - own;
        borrowed <= (budget / 2).saturating_sub(lent + borrowed)
    }

    /// Keeps a batch, unless every snapshot to come has it.
    pub(crate) fn push(&mut self, arrival: Arrival) {
        let partition = &mut self.partitions[arrival.partition];
        if arrival.offset >= partition.floor {
            self.bytes += arrival.bytes();
            partition.bytes += arrival.bytes();
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
            partition.bytes -= batch.bytes();
        }
    }

    /// Lets go of all batches of a partition: those from `next` on are read again, and no snapshot
    /// below that can be made whole.
    pub(crate) fn restart(&mut self, partition: usize, next: i64) {
        let partition = &mut self.partitions[partition];
        partition.batches.clear();
        self.bytes -= std::mem::take(&mut partition.bytes);
        partition.floor = partition.floor.max(next);
    }

    /// Gives `found` each delta of the counters that are sought, with the counter's place among
    /// them, in the batches that a snapshot at `vector` lacks.
    pub(crate) fn search(
        &self,
        sought: &Sought<'_>,
        vector: &Vector,
        mut found: impl FnMut(usize, Delta<'_>),
    ) {
        for (number, partition) in self.partitions.iter().enumerate() {
            let place = vector.at(number);
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

    #[test]
    fn partitions_that_are_full_leave_the_others_their_share() {
        let start = Vector::new(vec![StoredOffsets::default(); 4]);
        let mut window = Window::new(&start);
        let batch = |partition, offset| Arrival { partition, ..arrival(offset, &[("a", 0, 1)]) };
        let bytes = batch(0, 0).bytes();
        // 10 batches are each partition's own, and 40 are lent.
        let budget = 80 * bytes;
        let mut fill = |partition| {
            let mut kept = 0;
            while window.has_room(partition, bytes, budget) {
                window.push(batch(partition, kept));
                kept += 1;
            }
            kept
        };
        assert_eq!([fill(0), fill(1), fill(2), fill(3)], [30, 20, 15, 12]);
        assert!(window.bytes() <= budget);
        window.trim(1, 20);
        assert!(window.has_room(1, bytes, budget), "what was trimmed is room again");
        assert_eq!((window.bytes_of(1), window.bytes_of(0)), (0, 30 * bytes));
        assert!(window.has_room(1, budget, budget), "a large batch may have the window to itself");
    }

    #[test]
    fn a_partition_that_is_read_again_keeps_nothing_and_its_floor_does_not_sink() {
        let mut window = Window::new(&at(0));
        window.push(arrival(0, &[("a", 0, 1)]));
        window.push(arrival(1, &[("a", 0, 2)]));
        window.restart(0, 1);
        assert_eq!((window.bytes(), window.bytes_of(0), window.floor(0)), (0, 0, 1));
        window.push(arrival(1, &[("a", 0, 2)]));
        assert_eq!(sums(&window, ["a"], &at(1)), [2]);
        window.restart(0, 0);
        assert_eq!(window.floor(0), 1);
    }

    #[test]
    fn a_partition_that_was_added_begins_at_its_beginning() {
        let mut window = Window::new(&at(5));
        window.grow(2);
        window.push(Arrival { partition: 1, ..arrival(0, &[("a", 0, 1)]) });
        assert_eq!(sums(&window, ["a"], &at(5)), [1], "the snapshot lacks all of partition 1");
    }
}
