//! How far a service is behind a topic, as metrics tell of it: by partition, in offsets and in
//! seconds.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use opentelemetry::metrics::Gauge;
use opentelemetry::{KeyValue, global};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// One partition's lag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionLag {
    pub partition: i32,
    /// How many offsets of the log are not dealt with.
    pub offsets: i64,
    /// Since when the oldest message waits that is known not to be dealt with: Kafka's time of it,
    /// in milliseconds since 1970.
    pub oldest_ms: Option<i64>,
}

pub struct LagMetrics {
    offsets: Gauge<i64>,
    seconds: Gauge<f64>,
    /// The partitions that were told of last.
    told: BTreeSet<i32>,
    next_look: Instant,
}

impl LagMetrics {
    /// `service` as it stands in the names of its metrics; `what` it does not do yet with the
    /// messages that it is behind by.
    pub fn new(service: &str, what: &str) -> LagMetrics {
        let meter = global::meter("tally");
        LagMetrics {
            offsets: meter
                .i64_gauge(format!("tally_{service}_lag"))
                .with_description(format!("Offsets of a partition that are not {what} yet"))
                .build(),
            seconds: meter
                .f64_gauge(format!("tally_{service}_lag_seconds"))
                .with_description(format!(
                    "Age of the oldest message of a partition that is known not to be {what} yet"
                ))
                .build(),
            told: BTreeSet::new(),
            next_look: Instant::now(),
        }
    }

    /// Tells the lag of all partitions that the service holds, now and then; of others it tells
    /// none. To be called often.
    pub fn tell(&mut self, of: impl FnOnce() -> Vec<PartitionLag>) {
        let now = Instant::now();
        if now < self.next_look {
            return;
        }
        self.next_look = now + INTERVAL;
        let now_ms = Timestamp::now().as_millisecond();
        let mut gone = std::mem::take(&mut self.told);
        for PartitionLag { partition, offsets, oldest_ms } in of() {
            gone.remove(&partition);
            self.told.insert(partition);
            self.record(partition, offsets, oldest_ms.map_or(0, |oldest| (now_ms - oldest).max(0)));
        }
        // Another member tells of them now.
        gone.into_iter().for_each(|partition| self.record(partition, 0, 0));
    }

    fn record(&self, partition: i32, offsets: i64, age_ms: i64) {
        let of = [KeyValue::new("partition", i64::from(partition))];
        self.offsets.record(offsets, &of);
        self.seconds.record(age_ms as f64 / 1000.0, &of);
    }
}
