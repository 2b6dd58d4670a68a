//! How long acknowledged messages wait until readers include them: a sample of them, by partition.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two samples of a partition.
const SAMPLED_EACH: Duration = Duration::from_millis(20);
/// Samples of a partition that wait at once: twenty minutes of them.
const MOST_WAITING: usize = 60_000;

/// A message that was acknowledged, and then below the position of a reader's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inclusion {
    pub(crate) partition: i32,
    pub(crate) acknowledged: Instant,
    /// When the answer was there. Readers are asked again and again, so it is later than the true
    /// moment by up to the rest between two reads, 40 ms, and the time of an answer.
    pub(crate) included: Instant,
}

#[derive(Default)]
pub(super) struct Inclusions {
    waiting: BTreeMap<i32, WaitingSamples>,
    seen: Vec<Inclusion>,
}

#[derive(Default)]
struct WaitingSamples {
    newest: Option<Instant>,
    /// When what ends at an offset was acknowledged: not always in the log's order.
    by_next: BTreeMap<i64, Instant>,
}

impl Inclusions {
    /// A message that ends at `next` was acknowledged.
    pub(super) fn acknowledged(&mut self, partition: i32, next: i64, at: Instant) {
        let waiting = self.waiting.entry(partition).or_default();
        let is_due = waiting.newest.is_none_or(|newest| at >= newest + SAMPLED_EACH);
        if is_due && waiting.by_next.len() < MOST_WAITING {
            waiting.newest = Some(at);
            waiting.by_next.insert(next, at);
        }
    }

    /// An answer with this position was there: next offsets by partition.
    pub(super) fn included(&mut self, position: &BTreeMap<i32, i64>, at: Instant) {
        for (&partition, next) in position {
            let Some(waiting) = self.waiting.get_mut(&partition) else { continue };
            while let Some(first) = waiting.by_next.first_entry() {
                if first.key() > next {
                    break;
                }
                let acknowledged = first.remove();
                self.seen.push(Inclusion { partition, acknowledged, included: at });
            }
        }
    }

    pub(super) fn seen(&self) -> Vec<Inclusion> {
        self.seen.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_included_by_the_first_position_that_reaches_it() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut inclusions = Inclusions::default();
        // Too soon after the one before it: no sample.
        inclusions.acknowledged(0, 10, at(0));
        inclusions.acknowledged(0, 11, at(5));
        // Out of the log's order.
        inclusions.acknowledged(0, 30, at(20));
        inclusions.acknowledged(0, 20, at(40));
        inclusions.acknowledged(3, 7, at(6));
        inclusions.included(&BTreeMap::from([(0, 9), (1, 9)]), at(50));
        assert_eq!(inclusions.seen(), []);
        inclusions.included(&BTreeMap::from([(0, 29)]), at(60));
        inclusions.included(&BTreeMap::from([(0, 30), (3, 7)]), at(70));
        inclusions.included(&BTreeMap::from([(0, 99), (3, 99)]), at(80));
        let seen: Vec<_> = inclusions
            .seen()
            .into_iter()
            .map(|seen| (seen.partition, seen.acknowledged, seen.included))
            .collect();
        let expected = [(0, 0, 60), (0, 40, 60), (0, 20, 70), (3, 6, 70)];
        assert_eq!(seen, expected.map(|(partition, from, to)| (partition, at(from), at(to))));
    }
}
