//! What of each partition is not committed yet: for metrics of the lag, and nothing else.

use std::collections::BTreeMap;

use tally_platform::lag::{LagMetrics, PartitionLag};

pub(crate) struct Backlog {
    metrics: LagMetrics,
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
    /// Where logs end that are read now.
    pub(crate) ends: Vec<(i32, i64)>,
    /// The offset up to which nothing is there that was not handed over.
    pub(crate) position: &'s dyn Fn(i32) -> Option<i64>,
    /// Kafka's time of the first message that was read and is not flushed.
    pub(crate) oldest_ms: &'s dyn Fn(i32) -> Option<i64>,
    /// Since when the partition stands still.
    pub(crate) standing_ms: &'s dyn Fn(i32) -> Option<i64>,
}

impl Backlog {
    pub(crate) fn new() -> Backlog {
        Backlog { metrics: LagMetrics::new("aggregator", "counted"), partitions: BTreeMap::new() }
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
        metrics.tell(|| lags(partitions, &sources()));
    }
}

fn lags(partitions: &mut BTreeMap<i32, Reached>, sources: &Sources<'_>) -> Vec<PartitionLag> {
    for (partition, end) in &sources.ends {
        if let Some(reached) = partitions.get_mut(partition) {
            reached.end = Some(*end);
        }
    }
    let lag = |(&partition, reached): (&i32, &Reached)| {
        let in_flight = reached.in_flight.and_then(|(_, oldest_ms)| oldest_ms);
        let mut oldest_ms = in_flight.or_else(|| (sources.oldest_ms)(partition));
        let mut next = reached.committed;
        if oldest_ms.is_none() && reached.in_flight.is_none() {
            // The markers of transactions behind the last message are nothing to count.
            next = (sources.position)(partition).map_or(next, |position| position.max(next));
        }
        let offsets = (reached.end? - next).max(0);
        if offsets > 0 && oldest_ms.is_none() {
            oldest_ms = (sources.standing_ms)(partition);
        }
        Some(PartitionLag { partition, offsets, oldest_ms })
    };
    partitions.iter().filter_map(lag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag_of(backlog: &mut Backlog, sources: &Sources<'_>) -> Option<(i64, Option<i64>)> {
        let lags = lags(&mut backlog.partitions, sources);
        lags.into_iter().find(|lag| lag.partition == 3).map(|lag| (lag.offsets, lag.oldest_ms))
    }

    #[test]
    fn what_is_not_committed_is_lag_until_its_flush_is() {
        let mut backlog = Backlog::new();
        let none = |_| None;
        let at = |end| Sources {
            ends: vec![(3, end)],
            position: &none,
            oldest_ms: &none,
            standing_ms: &none,
        };
        let read = Sources { oldest_ms: &|_| Some(70), ..at(20) };
        assert_eq!(lag_of(&mut backlog, &read), None, "where it is committed is not known");
        backlog.located(3, 10);
        let unknown = Sources { ends: vec![], ..at(20) };
        assert_eq!(lag_of(&mut backlog, &unknown), None, "where the log ends is not known");
        assert_eq!(lag_of(&mut backlog, &read), Some((10, Some(70))));
        backlog.flushed(3, 15, Some(70));
        assert_eq!(lag_of(&mut backlog, &at(20)), Some((10, Some(70))));
        backlog.settled(false);
        assert_eq!(lag_of(&mut backlog, &at(20)), Some((10, None)));
        backlog.flushed(3, 20, Some(70));
        backlog.settled(true);
        assert_eq!(lag_of(&mut backlog, &at(20)), Some((0, None)));
        let behind_a_marker = Sources { position: &|_| Some(21), ..at(21) };
        assert_eq!(lag_of(&mut backlog, &behind_a_marker), Some((0, None)));
        backlog.forget(3);
        assert_eq!(lag_of(&mut backlog, &at(20)), None);
    }

    #[test]
    fn what_stands_still_grows_older_though_it_is_not_read() {
        let mut backlog = Backlog::new();
        backlog.located(3, 10);
        let standing = Sources {
            ends: vec![(3, 20)],
            position: &|_| None,
            oldest_ms: &|_| None,
            standing_ms: &|_| Some(50),
        };
        assert_eq!(lag_of(&mut backlog, &standing), Some((10, Some(50))));
        let no_longer_read = Sources { ends: vec![], ..standing };
        assert_eq!(lag_of(&mut backlog, &no_longer_read), Some((10, Some(50))));
    }
}
