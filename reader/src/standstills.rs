//! The partitions of `deltas` that stand still in this reader, as readiness, a metric, the log and
//! reads that wait for them tell of them: since when, and why.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::{Timestamp, Unit};
use tally_platform::health::Condition;

use crate::metrics::Metrics;
use crate::shared_memory::SharedMemory;

/// By the number of the partition.
pub(crate) type Standing = BTreeMap<i32, Standstill>;

#[derive(Clone, Debug)]
pub(crate) struct Standstill {
    since: Timestamp,
    reason: String,
}

impl fmt::Display for Standstill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.since.round(Unit::Second).unwrap_or(self.since);
        write!(f, "{} (since {since})", self.reason)
    }
}

/// What is told of them.
pub(crate) struct Standstills {
    /// Holds while there is none.
    none: Condition,
    metrics: Metrics,
    memory: Arc<SharedMemory>,
    standing: Standing,
}

impl Standstills {
    pub(crate) fn new(none: Condition, metrics: Metrics, memory: Arc<SharedMemory>) -> Standstills {
        none.set(true, "");
        Standstills { none, metrics, memory, standing: Standing::new() }
    }

    /// The partition stands still. It is told once for each reason, and the time is of the first.
    pub(crate) fn stands_still(&mut self, partition: i32, reason: &str) {
        let before = self.standing.get(&partition);
        if before.is_some_and(|before| before.reason == reason) {
            return;
        }
        tracing::error!(
            partition,
            reason,
            "the partition's counts are as of where it stands; it is tried again, from \
             ClickHouse's position where that is further; the other partitions go on"
        );
        let since = before.map_or_else(Timestamp::now, |before| before.since);
        self.standing.insert(partition, Standstill { since, reason: reason.to_owned() });
        self.metrics.stands_still(partition, true);
        self.tell();
    }

    /// The partition's batches are counted in again.
    pub(crate) fn goes_on(&mut self, partition: i32) {
        let Some(Standstill { since, .. }) = self.standing.remove(&partition) else { return };
        tracing::info!(partition, stood_still_since = %since, "the partition goes on");
        self.metrics.stands_still(partition, false);
        self.tell();
    }

    fn tell(&self) {
        let all: Vec<String> = self.standing.values().map(Standstill::to_string).collect();
        self.none.set(all.is_empty(), all.join("; "));
        self.memory.tell_standing(Arc::new(self.standing.clone()));
    }
}
