//! What of each partition is not proven yet, for metrics and nothing else.

use std::collections::BTreeMap;

use tally_platform::config::Config;
use tally_platform::partition_metrics::{Lag, PartitionMetrics, PartitionStatus, Statuses};

use crate::partition_reader::{Next, PartitionReaders};
use crate::verify::blocking;
use crate::{Report, Verdict};

pub(super) struct Backlog {
    metrics: PartitionMetrics,
    /// Through which offset each partition was last proven.
    proven: BTreeMap<i32, i64>,
    /// What comes next in partitions that rest.
    looked: BTreeMap<i32, Looked>,
}

impl Backlog {
    pub(super) fn new() -> Backlog {
        let metrics = PartitionMetrics::new("reconciler", "proven");
        Backlog { metrics, proven: BTreeMap::new(), looked: BTreeMap::new() }
    }

    /// Tells of the partitions as a round found them.
    pub(super) async fn tell(&mut self, config: &Config, report: &Report) {
        let mut statuses = Statuses::new();
        let mut resting = BTreeMap::new();
        for p in &report.partitions {
            let Some(partition) = p.in_kafka() else { continue };
            let before = self.proven.get(&partition).copied();
            if p.verdict != Verdict::Mismatch && p.is_proven_so_far() {
                self.proven.insert(partition, p.position);
            }
            let proven = self.proven.get(&partition).copied();
            let lag = proven
                .map(|proven| Lag { offsets: (p.end - proven).max(0), since_ms: p.through_ms });
            let state = p.verdict.name();
            statuses.insert(partition, PartitionStatus { state, next: proven, lag });
            if let Some(proven) = proven
                && before == Some(proven)
                && proven < p.end
            {
                resting.insert(partition, Resting { proven, end: p.end });
            }
        }
        self.look_at(config, resting).await;
        for (partition, Looked { next, .. }) in &self.looked {
            let Some(status) = statuses.get_mut(partition) else { continue };
            status.lag = status.lag.and_then(|lag| next.lag(lag.offsets));
        }
        self.metrics.set(statuses);
    }

    /// Looks at what comes next in these partitions, and in no others.
    async fn look_at(&mut self, config: &Config, resting: BTreeMap<i32, Resting>) {
        self.looked.retain(|partition, looked| resting.get(partition) == Some(&looked.at));
        let new = resting.into_iter().filter(|(partition, _)| !self.looked.contains_key(partition));
        let new: BTreeMap<i32, Resting> = new.collect();
        if new.is_empty() {
            return;
        }
        let from = new.iter().map(|(partition, at)| (*partition, at.proven)).collect();
        let kafka = config.kafka.clone();
        let looked = move || PartitionReaders::new(&kafka)?.next_of_each(&kafka.increments, &from);
        let found = blocking(looked).await.unwrap_or_default();
        let looked = new.into_iter().map(|(partition, at)| {
            let next = found.get(&partition).copied().unwrap_or(Next::Unknown);
            (partition, Looked { at, next })
        });
        self.looked.extend(looked);
    }
}

/// A partition of which a round proved no more, though its log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resting {
    proven: i64,
    end: i64,
}

struct Looked {
    at: Resting,
    next: Next,
}

impl Next {
    fn lag(self, offsets: i64) -> Option<Lag> {
        match self {
            Next::Message(since_ms) => Some(Lag { offsets, since_ms }),
            Next::Nothing => Some(Lag { offsets: 0, since_ms: None }),
            Next::Unknown => None,
        }
    }
}
