//! The partitions that stand still, as readiness, a metric and the log tell of them: since when,
//! and why.

use std::collections::BTreeMap;

use jiff::{Timestamp, Unit};
use tally_platform::health::Condition;

use crate::metrics::Metrics;
use crate::partition_error::PartitionError;

pub(crate) struct Standstills {
    /// Holds while there is none.
    none: Condition,
    metrics: Metrics,
    by_partition: BTreeMap<i32, Standstill>,
}

struct Standstill {
    since: Timestamp,
    reason: String,
    /// Whether it passes by itself, as one that waits does.
    passes: bool,
}

impl Standstills {
    pub(crate) fn new(none: Condition, metrics: Metrics) -> Standstills {
        none.set(true, "");
        Standstills { none, metrics, by_partition: BTreeMap::new() }
    }

    /// The partition stands still until a person has looked.
    pub(crate) fn stopped(&mut self, partition: i32, error: &PartitionError) {
        tracing::error!(partition, %error, "the partition stops; the others go on");
        self.note(partition, error.to_string(), false);
    }

    /// The partition waits for the schema registry.
    pub(crate) fn waits(&mut self, partition: i32, reason: &str) {
        if !self.by_partition.contains_key(&partition) {
            tracing::warn!(
                partition,
                error = reason,
                "the partition waits for the schema registry, which is asked again; others go on"
            );
        }
        self.note(partition, format!("partition {partition}: {reason}"), true);
    }

    fn note(&mut self, partition: i32, reason: String, passes: bool) {
        let since = self.by_partition.get(&partition).map_or_else(Timestamp::now, |s| s.since);
        self.by_partition.insert(partition, Standstill { since, reason, passes });
        self.metrics.stands_still(partition, true);
        self.tell();
    }

    /// Returns whether the partition waited, which is over.
    pub(crate) fn wait_is_over(&mut self, partition: i32) -> bool {
        let waited = self.by_partition.get(&partition).is_some_and(|standstill| standstill.passes);
        if waited {
            self.forget(partition);
        }
        waited
    }

    /// Since when a partition stands still, in milliseconds since 1970.
    pub(crate) fn since_ms(&self, partition: i32) -> Option<i64> {
        Some(self.by_partition.get(&partition)?.since.as_millisecond())
    }

    /// The group took the partition, or gave it once more.
    pub(crate) fn forget(&mut self, partition: i32) {
        if self.by_partition.remove(&partition).is_some() {
            self.metrics.stands_still(partition, false);
            self.tell();
        }
    }

    fn tell(&self) {
        let told = |Standstill { since, reason, .. }: &Standstill| {
            let since = since.round(Unit::Second).unwrap_or(*since);
            format!("{reason} (since {since})")
        };
        let all: Vec<String> = self.by_partition.values().map(told).collect();
        self.none.set(all.is_empty(), all.join("; "));
    }
}
