//! The partitions that do not get on though there is more of them in Kafka, whatever the steps are
//! that take the time. Nothing need be wrong with any step, but the partition stands still, so
//! readiness says so.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::health::Condition;
use crate::partition_metrics::{PartitionStatus, Statuses};

/// How long a partition may stand still before it is told, besides the time that the service waits
/// on purpose.
const LONG: Duration = Duration::from_secs(10);

pub struct ProgressWatch {
    /// Holds while no partition stands still for long.
    none: Condition,
    /// What is done to messages: `counted`.
    done: &'static str,
    /// The states in which a partition gets on, or will by itself. Who stands still in another one
    /// is told elsewhere, with the reason.
    states: &'static [&'static str],
    long: Duration,
    /// What each was to deal with next when it last got on, and when that was.
    since: BTreeMap<i32, (Option<i64>, Instant)>,
}

impl ProgressWatch {
    /// `waits` is how long the service waits on purpose before it deals with messages.
    pub fn new(
        none: Condition,
        done: &'static str,
        states: &'static [&'static str],
        waits: Duration,
    ) -> ProgressWatch {
        none.set(true, "");
        ProgressWatch { none, done, states, long: LONG + waits, since: BTreeMap::new() }
    }

    /// To be called often, with all partitions that the service holds.
    pub(crate) fn look(&mut self, partitions: &Statuses, now: Instant) {
        let long = self.update(partitions, now);
        self.none.set(long.is_empty(), long.join("; "));
    }

    fn update(&mut self, partitions: &Statuses, now: Instant) -> Vec<String> {
        let before = std::mem::take(&mut self.since);
        let mut long = Vec::new();
        for (&partition, &PartitionStatus { state, next, lag }) in partitions {
            // Before its lag is known there is something to find out.
            let is_behind = lag.is_none_or(|lag| lag.offsets > 0);
            if !is_behind || !self.states.contains(&state) {
                continue;
            }
            // That the next offset is found is no progress yet.
            let has_got_on = |was: Option<i64>| was.is_some() && next > was;
            let was = before.get(&partition).filter(|(was, _)| !has_got_on(*was));
            let since = was.map_or(now, |(_, since)| *since);
            self.since.insert(partition, (next, since));
            let lasts = now.duration_since(since);
            if lasts >= self.long {
                let (done, seconds) = (self.done, lasts.as_secs());
                long.push(format!(
                    "partition {partition}: nothing {done} for {seconds} s, {state} now"
                ));
            }
        }
        long
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;
    use crate::partition_metrics::Lag;

    #[test]
    fn a_partition_that_does_not_get_on_is_told_whatever_takes_the_time() {
        let none = Health::new().condition("partitions are counted soon");
        let states = &["locating", "restoring", "counting"];
        let mut watch = ProgressWatch::new(none, "counted", states, Duration::from_secs(1));
        let begin = Instant::now();
        let mut at = |seconds, state, next: Option<i64>, offsets| {
            let lag = next.map(|_| Lag { offsets, since_ms: None });
            let statuses = Statuses::from([(3, PartitionStatus { state, next, lag })]);
            watch.update(&statuses, begin + Duration::from_secs(seconds))
        };
        assert!(at(0, "locating", None, 0).is_empty());
        assert!(at(6, "counting", Some(10), 5).is_empty());
        assert_eq!(
            at(11, "counting", Some(10), 5),
            ["partition 3: nothing counted for 11 s, counting now"]
        );
        assert!(at(12, "counting", Some(11), 4).is_empty(), "it gets on");
        assert!(at(22, "restoring", Some(11), 4).is_empty());
        assert_eq!(at(23, "restoring", Some(11), 4).len(), 1);
        assert!(at(24, "counting", Some(11), 0).is_empty(), "there is nothing to count");
        assert!(at(60, "counting", Some(11), 1).is_empty(), "there is since now");
        assert!(at(90, "stopped", Some(11), 1).is_empty(), "which is told by itself");
    }
}
