//! What of each partition is not committed yet, for metrics and readiness.

use std::collections::BTreeMap;

use tally_platform::partition_metrics::{Lag, PartitionMetrics, PartitionStatus, Statuses};
use tally_platform::progress_watch::ProgressWatch;

pub(crate) struct Backlog {
    metrics: PartitionMetrics,
    /// The partitions whose committed offset is known, with what is known of the rest.
    partitions: BTreeMap<i32, Reached>,
}

struct Reached {
    /// The next offset after all that is committed.
    committed: i64,
    /// Where the flush in flight ends, and Kafka's time of its first message.
    in_flight: Option<(i64, Option<i64>)>,
    /// Where the log ended when a broker last told.
    end: Option<i64>,
}

/// What is asked of the parts that know it, by partition.
pub(crate) struct Sources<'s> {
    /// The state of each partition that is held.
    pub(crate) states: Vec<(i32, &'static str)>,
    /// Where logs end, as far as it is known.
    pub(crate) ends: BTreeMap<i32, i64>,
    /// The offset up to which nothing is there that was not handed over.
    pub(crate) position: &'s dyn Fn(i32) -> Option<i64>,
    /// Kafka's time of the first message that was read and is not flushed.
    pub(crate) oldest_ms: &'s dyn Fn(i32) -> Option<i64>,
    /// Since when the partition stands still.
    pub(crate) standing_ms: &'s dyn Fn(i32) -> Option<i64>,
}

impl Backlog {
    pub(crate) fn new(progress: ProgressWatch) -> Backlog {
        let metrics = PartitionMetrics::new("aggregator", "counted").watched(progress);
        Backlog { metrics, partitions: BTreeMap::new() }
    }

    /// The partition is read from here on, which is committed.
    pub(crate) fn located(&mut self, partition: i32, committed: i64) {
        let reached = Reached { committed, in_flight: None, end: None };
        self.partitions.insert(partition, reached);
    }

    /// A flush goes out that ends here, and whose first message has this time.
    pub(crate) fn flushed(&mut self, partition: i32, end: i64, oldest_ms: Option<i64>) {
        if let Some(reached) = self.partitions.get_mut(&partition) {
            reached.in_flight = Some((end, oldest_ms));
        }
    }

    /// The flush in flight is over.
    pub(crate) fn settled(&mut self, is_committed: bool) {
        for reached in self.partitions.values_mut() {
            if let Some((end, _)) = reached.in_flight.take().filter(|_| is_committed) {
                reached.committed = end;
            }
        }
    }

    pub(crate) fn forget(&mut self, partition: i32) {
        self.partitions.remove(&partition);
    }

    /// To be called often.
    pub(crate) fn tell<'s>(&mut self, sources: impl FnOnce() -> Sources<'s>) {
        let Backlog { metrics, partitions } = self;
        metrics.tell(|| statuses(partitions, &sources()));
    }
}

fn statuses(partitions: &mut BTreeMap<i32, Reached>, sources: &Sources<'_>) -> Statuses {
    for (partition, end) in &sources.ends {
        if let Some(reached) = partitions.get_mut(partition) {
            reached.end = Some(*end);
        }
    }
    let status = |&(partition, state)| {
        let reached = partitions.get(&partition);
        let next = reached.map(|reached| reached.committed);
        let lag = reached.and_then(|reached| reached.lag(partition, sources));
        (partition, PartitionStatus { state, next, lag })
    };
    sources.states.iter().map(status).collect()
}

impl Reached {
    fn lag(&self, partition: i32, sources: &Sources<'_>) -> Option<Lag> {
        let in_flight = self.in_flight.and_then(|(_, oldest_ms)| oldest_ms);
        let oldest_ms = in_flight.or_else(|| (sources.oldest_ms)(partition));
        let mut next = self.committed;
        if oldest_ms.is_none() && self.in_flight.is_none() {
            // The markers of transactions behind the last message are nothing to count.
            next = (sources.position)(partition).map_or(next, |position| position.max(next));
        }
        let since_ms = oldest_ms.or_else(|| (sources.standing_ms)(partition));
        Some(Lag { offsets: (self.end? - next).max(0), since_ms })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tally_platform::health::Health;

    use super::*;

    const NONE: &dyn Fn(i32) -> Option<i64> = &|_| None;

    fn backlog() -> Backlog {
        let none = Health::new().condition("partitions are counted soon");
        Backlog::new(ProgressWatch::new(none, "counted", &["counting"], Duration::ZERO))
    }

    fn at(end: i64) -> Sources<'static> {
        Sources {
            states: vec![(3, "counting"), (4, "locating")],
            ends: BTreeMap::from([(3, end)]),
            position: NONE,
            oldest_ms: NONE,
            standing_ms: NONE,
        }
    }

    fn lag(backlog: &mut Backlog, sources: &Sources<'_>) -> Option<(i64, Option<i64>)> {
        let statuses = statuses(&mut backlog.partitions, sources);
        assert_eq!(statuses[&4], PartitionStatus { state: "locating", next: None, lag: None });
        assert_eq!(statuses[&3].state, "counting");
        statuses[&3].lag.map(|lag| (lag.offsets, lag.since_ms))
    }

    #[test]
    fn what_is_not_committed_is_lag_until_its_flush_is() {
        let mut backlog = backlog();
        let read = Sources { oldest_ms: &|_| Some(70), ..at(20) };
        assert_eq!(lag(&mut backlog, &read), None, "where it is committed is not known");
        backlog.located(3, 10);
        let unknown = Sources { ends: BTreeMap::new(), ..at(20) };
        assert_eq!(lag(&mut backlog, &unknown), None, "where the log ends is not known");
        assert_eq!(lag(&mut backlog, &read), Some((10, Some(70))));
        backlog.flushed(3, 15, Some(70));
        assert_eq!(lag(&mut backlog, &at(20)), Some((10, Some(70))));
        backlog.settled(false);
        assert_eq!(lag(&mut backlog, &at(20)), Some((10, None)));
        backlog.flushed(3, 20, Some(70));
        backlog.settled(true);
        assert_eq!(lag(&mut backlog, &at(20)), Some((0, None)));
        let behind_a_marker = Sources { position: &|_| Some(21), ..at(21) };
        assert_eq!(lag(&mut backlog, &behind_a_marker), Some((0, None)));
        backlog.forget(3);
        assert_eq!(lag(&mut backlog, &at(20)), None);
    }

    #[test]
    fn what_stands_still_grows_older_though_it_is_not_read() {
        let mut backlog = backlog();
        backlog.located(3, 10);
        let standing = Sources { standing_ms: &|_| Some(50), ..at(20) };
        assert_eq!(lag(&mut backlog, &standing), Some((10, Some(50))));
        let no_longer_read = Sources { ends: BTreeMap::new(), ..standing };
        assert_eq!(lag(&mut backlog, &no_longer_read), Some((10, Some(50))));
    }
}
