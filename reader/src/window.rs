//! The unstored window: what was tailed and may be missing from a snapshot of the store.
//!
//! ```text
//!  deltas of one partition:   … 3  4  5  6  7  8  9 │ not tailed yet
//!                                   ▲           ▲
//!                                   floor       tail
//!                                   └── kept ───┘
//! ```
//!
//! Everything tailed at or beyond a partition's floor is here. A snapshot at or beyond the floor is therefore made whole by the
//! deltas from the snapshot's position on; one below the floor cannot be.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::counter::Counter;
use crate::vector::Vector;

/// What a delta takes beside its counter's name: its place in the index, the name's own header, the batch's list.
const DELTA_OVERHEAD_BYTES: usize = 160;

/// One batch of `deltas`, read and checked, not yet counted in.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) partition: usize,
    /// Its own offset in `deltas`.
    pub(crate) offset: i64,
    /// The offsets of `increments` that it is of.
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) deltas: Vec<Delta>,
}

#[derive(Clone, Debug)]
pub(crate) struct Delta {
    pub(crate) counter: Counter,
    pub(crate) bucket_s: u32,
    pub(crate) sum: i64,
    pub(crate) events: i64,
}

impl Arrival {
    /// What it takes in the window.
    pub(crate) fn bytes(&self) -> usize {
        self.deltas.iter().map(|delta| delta.counter.bytes() + DELTA_OVERHEAD_BYTES).sum()
    }
}

/// What a counter gained in one batch and bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gain {
    offset: i64,
    pub(crate) bucket_s: u32,
    pub(crate) sum: i64,
    pub(crate) events: i64,
}

pub(crate) struct Window {
    partitions: Vec<Partition>,
    bytes: usize,
}

struct Partition {
    /// The next offset of `deltas` below which nothing is kept.
    floor: i64,
    batches: VecDeque<Kept>,
    /// In the order of their offsets.
    gains: HashMap<Counter, VecDeque<Gain>>,
}

struct Kept {
    offset: i64,
    bytes: usize,
    counters: Vec<Counter>,
}

impl Window {
    pub(crate) fn new(start: &Vector) -> Window {
        let partition = |floor| Partition { floor, batches: VecDeque::new(), gains: HashMap::new() };
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
    pub(crate) fn push(&mut self, arrival: &Arrival) {
        let partition = &mut self.partitions[arrival.partition];
        if arrival.offset < partition.floor {
            return;
        }
        let mut counters = Vec::with_capacity(arrival.deltas.len());
        for delta in &arrival.deltas {
            let gain = Gain {
                offset: arrival.offset,
                bucket_s: delta.bucket_s,
                sum: delta.sum,
                events: delta.events,
            };
            partition.gains.entry(delta.counter.clone()).or_default().push_back(gain);
            counters.push(delta.counter.clone());
        }
        let bytes = arrival.bytes();
        partition.batches.push_back(Kept { offset: arrival.offset, bytes, counters });
        self.bytes += bytes;
    }

    /// Moves a partition's floor up to `floor`, and lets go of what is below it.
    pub(crate) fn trim(&mut self, partition: usize, floor: i64) {
        let partition = &mut self.partitions[partition];
        partition.floor = partition.floor.max(floor);
        while let Some(batch) = partition.batches.pop_front_if(|batch| batch.offset < partition.floor) {
            self.bytes -= batch.bytes;
            for counter in &batch.counters {
                let Some(gains) = partition.gains.get_mut(counter) else { continue };
                while gains.pop_front_if(|gain| gain.offset < partition.floor).is_some() {}
                if gains.is_empty() {
                    partition.gains.remove(counter);
                }
            }
        }
        if partition.batches.is_empty() {
            partition.gains.shrink_to_fit();
        }
    }

    /// What `counter` gained in the batches that a snapshot at `vector` lacks.
    pub(crate) fn gains<'a>(
        &'a self,
        counter: &'a Counter,
        vector: &'a Vector,
    ) -> impl Iterator<Item = &'a Gain> + 'a {
        self.partitions.iter().zip(vector.iter()).flat_map(|(partition, (_, place))| {
            debug_assert!(place.deltas >= partition.floor, "a snapshot below the floor cannot be made whole");
            let gains = partition.gains.get(counter).into_iter().flatten();
            gains.skip_while(move |gain| gain.offset < place.deltas)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Place;

    fn arrival(offset: i64, gains: &[(&str, u32, i64)]) -> Arrival {
        let delta = |&(key, bucket_s, sum): &(&str, u32, i64)| Delta {
            counter: Counter::new("ns", key),
            bucket_s,
            sum,
            events: 1,
        };
        let deltas = gains.iter().map(delta).collect();
        Arrival { partition: 0, offset, from: offset, to: offset + 1, deltas }
    }

    fn at(deltas: i64) -> Vector {
        Vector::new(vec![Place { deltas, source: deltas }])
    }

    fn sum(window: &Window, key: &str, vector: &Vector) -> i64 {
        window.gains(&Counter::new("ns", key), vector).map(|gain| gain.sum).sum()
    }

    #[test]
    fn a_snapshot_gets_the_batches_from_its_position_on() {
        let mut window = Window::new(&at(0));
        window.push(&arrival(0, &[("a", 0, 1), ("a", 60, 2), ("b", 0, 4)]));
        window.push(&arrival(2, &[("a", 0, 8)]));
        assert_eq!(sum(&window, "a", &at(0)), 11);
        assert_eq!(sum(&window, "a", &at(1)), 8);
        assert_eq!(sum(&window, "a", &at(3)), 0);
        assert_eq!(sum(&window, "b", &at(0)), 4);
    }

    #[test]
    fn trimming_lets_go_of_everything_below_the_floor_and_its_bytes() {
        let mut window = Window::new(&at(0));
        window.push(&arrival(0, &[("a", 0, 1), ("a", 60, 2), ("b", 0, 4)]));
        window.push(&arrival(2, &[("a", 0, 8)]));
        let last = arrival(2, &[("a", 0, 8)]).bytes();
        window.trim(0, 1);
        assert_eq!((window.bytes(), window.floor(0)), (last, 1));
        assert_eq!(sum(&window, "a", &at(1)), 8);
        window.trim(0, 3);
        assert_eq!(window.bytes(), 0);
        assert!(window.partitions[0].gains.is_empty());
        window.push(&arrival(2, &[("a", 0, 8)]));
        assert_eq!(window.bytes(), 0, "what is below the floor is not kept");
        window.trim(0, 1);
        assert_eq!(window.floor(0), 3, "a floor never sinks");
    }
}
