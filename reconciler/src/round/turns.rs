//! Whose turn it is that all of a partition's rows are read: one partition after the other, each
//! once in an interval, so that no round has to wait for the whole table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub(super) struct Turns {
    /// Between two looks at all rows of one partition.
    interval: Duration,
    /// When all rows of each partition were read last.
    read_at: BTreeMap<i32, Instant>,
    /// When partitions were last chosen.
    chosen_at: Instant,
}

impl Turns {
    pub(super) fn new(interval: Duration, now: Instant) -> Turns {
        Turns { interval, read_at: BTreeMap::new(), chosen_at: now }
    }

    /// The partitions whose turn it is; `None` are all, as long as none was read.
    pub(super) fn choose(&mut self, now: Instant) -> Option<BTreeSet<i32>> {
        if self.read_at.is_empty() {
            return None;
        }
        let passed = now.saturating_duration_since(self.chosen_at).as_secs_f64();
        let intervals = passed / self.interval.as_secs_f64().max(f64::MIN_POSITIVE);
        let many = (self.read_at.len() as f64 * intervals.min(1.0)) as usize;
        let mut oldest: Vec<(Instant, i32)> =
            self.read_at.iter().map(|(partition, at)| (*at, *partition)).collect();
        oldest.sort_unstable();
        if many > 0 {
            self.chosen_at = now;
        }
        Some(oldest.into_iter().take(many).map(|(_, partition)| partition).collect())
    }

    pub(super) fn read(&mut self, partition: i32, now: Instant) {
        self.read_at.insert(partition, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_has_its_turn_once_in_an_interval() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut turns = Turns::new(Duration::from_secs(300), at(0));
        assert_eq!(turns.choose(at(1)), None);
        let mut read = BTreeMap::new();
        for partition in 0..8 {
            turns.read(partition, at(0));
        }
        for second in (15..=600).step_by(15) {
            let chosen = turns.choose(at(second)).expect("some were read");
            assert!(chosen.len() <= 1, "at {second} s: {chosen:?}");
            for partition in chosen {
                turns.read(partition, at(second));
                *read.entry(partition).or_insert(0) += 1;
            }
        }
        assert_eq!(read.len(), 8);
        assert!(read.values().all(|times| *times <= 2), "{read:?}");
    }

    #[test]
    fn a_round_that_took_longer_than_the_interval_is_followed_by_a_look_at_all() {
        let now = Instant::now();
        let mut turns = Turns::new(Duration::from_secs(1), now);
        turns.read(0, now);
        turns.read(7, now);
        let chosen = turns.choose(now + Duration::from_secs(5));
        assert_eq!(chosen, Some(BTreeSet::from([0, 7])));
        assert_eq!(turns.choose(now + Duration::from_secs(5)), Some(BTreeSet::new()));
    }
}
