//! The partitions that stand still until a person has looked, as readiness, a metric and the log
//! tell of them.

use std::collections::BTreeMap;

use jiff::{Timestamp, Unit};
use tally_platform::health::Condition;

use crate::metrics::Metrics;
use crate::partition_error::PartitionError;

pub(crate) struct StoppedPartitions {
    /// Holds while none is stopped.
    none: Condition,
    /// Since when, and why.
    reasons: BTreeMap<i32, (Timestamp, PartitionError)>,
}

impl StoppedPartitions {
    pub(crate) fn new(none: Condition) -> StoppedPartitions {
        none.set(true, "");
        StoppedPartitions { none, reasons: BTreeMap::new() }
    }

    pub(crate) fn stop(&mut self, partition: i32, error: PartitionError, metrics: &Metrics) {
        tracing::error!(partition, %error, "the partition stops; the others go on");
        metrics.stopped(partition, true);
        self.reasons.insert(partition, (Timestamp::now(), error));
        self.tell();
    }

    /// The group took these partitions, or gave them once more.
    pub(crate) fn forget(&mut self, partitions: &[i32], metrics: &Metrics) {
        for partition in partitions {
            if self.reasons.remove(partition).is_some() {
                metrics.stopped(*partition, false);
            }
        }
        self.tell();
    }

    fn tell(&self) {
        let reason = |(since, error): &(Timestamp, PartitionError)| {
            let since = since.round(Unit::Second).unwrap_or(*since);
            format!("{error} (since {since})")
        };
        let reasons: Vec<String> = self.reasons.values().map(reason).collect();
        self.none.set(reasons.is_empty(), reasons.join("; "));
    }
}
