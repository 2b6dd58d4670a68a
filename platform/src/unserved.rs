//! The partitions that Kafka does not serve, as readiness and a metric tell of them: for how long,
//! and why. The log has it from the fetcher.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use opentelemetry::metrics::Gauge;
use opentelemetry::{KeyValue, global};
use tally_kafka::Unserved;

use crate::health::{Condition, Health};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

pub struct UnservedPartitions {
    /// Holds while there is none.
    none: Condition,
    gauge: Gauge<u64>,
    told: BTreeSet<i32>,
    next_look: Instant,
}

impl UnservedPartitions {
    /// `service` as it stands in the names of its metrics.
    pub fn new(health: &Health, service: &str) -> UnservedPartitions {
        let none = health.condition("Kafka serves every partition");
        none.set(true, "");
        let gauge = global::meter("tally")
            .u64_gauge(format!("tally_{service}_partition_unserved"))
            .with_description(
                "1 while Kafka does not serve the partition, for a reason that /readyz tells, \
                 else 0",
            )
            .build();
        UnservedPartitions { none, gauge, told: BTreeSet::new(), next_look: Instant::now() }
    }

    /// Tells what the fetcher says, now and then. To be called often.
    pub fn tell(&mut self, unserved: impl FnOnce() -> Vec<Unserved>) {
        let now = Instant::now();
        if now < self.next_look {
            return;
        }
        self.next_look = now + INTERVAL;
        let unserved = unserved();
        let partitions: BTreeSet<i32> = unserved.iter().map(|one| one.partition).collect();
        if partitions.is_empty() && self.told.is_empty() {
            return;
        }
        for partition in self.told.union(&partitions) {
            let is_unserved = u64::from(partitions.contains(partition));
            self.gauge.record(is_unserved, &[KeyValue::new("partition", i64::from(*partition))]);
        }
        let told = |Unserved { partition, since, reason }: &Unserved| {
            format!("partition {partition}: {reason} (for {} s)", since.elapsed().as_secs())
        };
        let all: Vec<String> = unserved.iter().map(told).collect();
        self.none.set(all.is_empty(), all.join("; "));
        self.told = partitions;
    }
}
