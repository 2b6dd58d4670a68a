//! What of each partition is not proven yet, for metrics and nothing else.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rdkafka::Message;
use tally_platform::config::{self, Config};
use tally_platform::partition_metrics::{Lag, PartitionMetrics, PartitionStatus, Statuses};

use crate::partition_reader::PartitionReaders;
use crate::verify::blocking;
use crate::{Error, Report, Verdict};

pub(super) struct Backlog {
    metrics: PartitionMetrics,
    /// Through which offset each partition was last proven.
    proven: BTreeMap<i32, i64>,
}

impl Backlog {
    pub(super) fn new() -> Backlog {
        Backlog { metrics: PartitionMetrics::new("reconciler", "proven"), proven: BTreeMap::new() }
    }

    /// Tells of the partitions as a round found them.
    pub(super) async fn tell(&mut self, config: &Config, report: &Report) {
        let mut statuses = Statuses::new();
        // Those of which nothing more was proven: what comes next in them is looked at.
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
            statuses.insert(partition, PartitionStatus { state: p.verdict.name(), lag });
            if let Some(proven) = proven
                && before == Some(proven)
                && proven < p.end
            {
                resting.insert(partition, proven);
            }
        }
        if !resting.is_empty() {
            for (partition, next) in next_messages(config, resting).await {
                let Some(status) = statuses.get_mut(&partition) else { continue };
                status.lag = status.lag.and_then(|lag| next.lag(lag.offsets));
            }
        }
        self.metrics.set(statuses);
    }
}

/// What comes next in a partition.
#[derive(Clone, Copy)]
enum Next {
    /// A message of this time, in milliseconds since 1970.
    Message(Option<i64>),
    /// Nothing but the markers of transactions.
    Nothing,
    Unknown,
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

/// What comes next in each partition, from its offset on.
async fn next_messages(config: &Config, from: BTreeMap<i32, i64>) -> BTreeMap<i32, Next> {
    let kafka = config.kafka.clone();
    let unknown = from.keys().map(|partition| (*partition, Next::Unknown)).collect();
    blocking(move || read_next(&kafka, &from)).await.unwrap_or(unknown)
}

fn read_next(
    kafka: &config::Kafka,
    from: &BTreeMap<i32, i64>,
) -> Result<BTreeMap<i32, Next>, Error> {
    let mut readers = PartitionReaders::new(kafka)?;
    let mut found = BTreeMap::new();
    let bounds = readers.read_all(&kafka.increments, from, |message| {
        found.insert(message.partition(), Next::Message(message.timestamp().to_millis()));
        Ok(ControlFlow::Break(()))
    })?;
    for (partition, bounds) in bounds {
        let nothing = if bounds.is_ok() { Next::Nothing } else { Next::Unknown };
        found.entry(partition).or_insert(nothing);
    }
    Ok(found)
}
