//! What of each partition is not counted in yet, for metrics and nothing else.

use jiff::Timestamp;
use tally_platform::partition_metrics::{Lag, PartitionMetrics, PartitionStatus, Statuses};

use crate::vector::number;

pub(super) struct Backlog {
    metrics: PartitionMetrics,
    partitions: Vec<Reached>,
}

#[derive(Clone, Default)]
struct Reached {
    /// Where the log ends, if a broker told.
    end: Option<i64>,
    /// The offset up to which there was nothing more to read when it was read to its end.
    read_to: i64,
    /// Kafka's time of the last batch that was counted in, in milliseconds since 1970.
    through_ms: Option<i64>,
    wait: Option<WaitEstimate>,
}

/// What the tail says of one partition.
pub(super) struct Tailed {
    pub(super) state: &'static str,
    /// The next offset after the last batch that was counted in.
    pub(super) next: i64,
    /// Whether it is read on.
    pub(super) is_read: bool,
}

impl Backlog {
    pub(super) fn new() -> Backlog {
        Backlog { metrics: PartitionMetrics::new("reader", "counted in"), partitions: Vec::new() }
    }

    fn of(&mut self, partition: usize) -> &mut Reached {
        if self.partitions.len() <= partition {
            self.partitions.resize(partition + 1, Reached::default());
        }
        &mut self.partitions[partition]
    }

    /// The log ends here; `None` where no broker tells.
    pub(super) fn ends(&mut self, partition: usize, end: Option<i64>) {
        self.of(partition).end = end;
    }

    /// All of the log is read, which ends at `end`.
    pub(super) fn read_to(&mut self, partition: usize, end: i64) {
        let reached = self.of(partition);
        reached.read_to = end;
        reached.end = reached.end.max(Some(end));
    }

    /// The partition is read from another place on.
    pub(super) fn read_anew(&mut self, partition: usize) {
        self.of(partition).read_to = 0;
    }

    /// A batch of this time was counted in.
    pub(super) fn counted_in(&mut self, partition: usize, ms: Option<i64>) {
        let reached = self.of(partition);
        reached.through_ms = ms.or(reached.through_ms);
    }

    /// To be called often; `tailed` says what the tail does with each partition, in order.
    pub(super) fn tell(&mut self, tailed: impl FnOnce() -> Vec<Tailed>) {
        let Backlog { metrics, partitions } = self;
        metrics.tell(|| statuses(partitions, tailed(), Timestamp::now().as_millisecond()));
    }
}

fn statuses(partitions: &mut Vec<Reached>, tailed: Vec<Tailed>, now_ms: i64) -> Statuses {
    partitions.resize(tailed.len(), Reached::default());
    let of_each = partitions.iter_mut().zip(tailed).enumerate();
    let status = |(partition, (reached, tailed)): (usize, (&mut Reached, Tailed))| {
        let lag = reached.lag(&tailed, now_ms);
        let (state, next) = (tailed.state, Some(tailed.next));
        (number(partition), PartitionStatus { state, next, lag })
    };
    of_each.map(status).collect()
}

impl Reached {
    fn lag(&mut self, tailed: &Tailed, now_ms: i64) -> Option<Lag> {
        // The markers of transactions behind the last batch are nothing to count in.
        let read_to = if tailed.is_read { self.read_to } else { 0 };
        let (position, end) = (tailed.next.max(read_to), self.end?);
        let wait = self.wait.get_or_insert_with(|| WaitEstimate::new(end, now_ms));
        Some(wait.lag(position, end, self.through_ms, now_ms))
    }
}

/// Since when the next message of a partition waits, whose own time is not known before it
/// is read: since the log was last seen to end where the tail is, or since the last batch that was
/// counted in, whichever is later.
#[derive(Clone, Copy, Debug)]
struct WaitEstimate {
    /// Where the log ended at some time, which the tail has not reached since.
    end: i64,
    end_ms: i64,
    /// The same, of the last end that it has reached.
    reached_ms: Option<i64>,
}

impl WaitEstimate {
    /// Begins where the log ends now.
    fn new(end: i64, now_ms: i64) -> WaitEstimate {
        WaitEstimate { end, end_ms: now_ms, reached_ms: None }
    }

    /// The tail is at `position`, the log ends at `end`, and the last batch that was counted in has
    /// the time `through_ms`, if it is known. Times are in milliseconds since 1970.
    fn lag(&mut self, position: i64, end: i64, through_ms: Option<i64>, now_ms: i64) -> Lag {
        if position >= self.end {
            self.reached_ms = Some(self.end_ms);
            (self.end, self.end_ms) = (end, now_ms);
        }
        Lag { offsets: (end - position).max(0), since_ms: self.reached_ms.max(through_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(partitions: &mut Vec<Reached>, next: i64, is_read: bool, now_ms: i64) -> Option<Lag> {
        let tailed = vec![Tailed { state: "tailing", next, is_read }];
        statuses(partitions, tailed, now_ms)[&0].lag
    }

    #[test]
    fn markers_behind_the_last_batch_are_no_lag_and_what_is_not_known_is_none() {
        let mut partitions = Vec::new();
        assert_eq!(lag(&mut partitions, 10, true, 1000), None);
        partitions[0].end = Some(11);
        assert_eq!(lag(&mut partitions, 10, true, 1000).unwrap().offsets, 1);
        partitions[0].read_to = 11;
        assert_eq!(lag(&mut partitions, 10, true, 2000).unwrap().offsets, 0);
        partitions[0].end = Some(13);
        let waits = lag(&mut partitions, 10, true, 3000);
        assert_eq!(waits, Some(Lag { offsets: 2, since_ms: Some(2000) }));
        let stands = lag(&mut partitions, 10, false, 4000);
        assert_eq!(stands, Some(Lag { offsets: 3, since_ms: Some(2000) }));
    }

    #[test]
    fn a_first_message_after_a_long_rest_has_not_waited_for_as_long() {
        let mut wait = WaitEstimate::new(10, 0);
        for now_ms in (1000..=60_000).step_by(1000) {
            assert_eq!(wait.lag(10, 10, Some(0), now_ms).offsets, 0);
        }
        let lag = wait.lag(10, 11, Some(0), 61_000);
        assert_eq!(lag, Lag { offsets: 1, since_ms: Some(60_000) });
        let lag = wait.lag(10, 15, Some(0), 70_000);
        assert_eq!(lag.since_ms, Some(60_000), "it is the same message that waits");
        let lag = wait.lag(12, 15, Some(65_000), 71_000);
        assert_eq!(lag.since_ms, Some(65_000));
    }

    #[test]
    fn how_long_a_backlog_of_before_waits_is_known_from_its_messages() {
        let mut wait = WaitEstimate::new(100, 1_000_000);
        assert_eq!(wait.lag(10, 100, None, 1_001_000).since_ms, None);
        assert_eq!(wait.lag(50, 110, Some(300), 1_002_000).since_ms, Some(300));
    }
}
