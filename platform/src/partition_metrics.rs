//! What a service does with each partition that it holds, as metrics tell of it: its state, and how
//! far it is behind the log, in offsets and in seconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use opentelemetry::metrics::AsyncInstrument;
use opentelemetry::{KeyValue, global};

use crate::progress_watch::ProgressWatch;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is told of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionStatus {
    /// What is done with it, in one word: `counting`.
    pub state: &'static str,
    /// The next offset after all that is dealt with; `None` where it is not known.
    pub next: Option<i64>,
    /// `None` where it is not known.
    pub lag: Option<Lag>,
}

/// How far a partition is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// How many offsets of the log are not dealt with.
    pub offsets: i64,
    /// Since when the oldest of them waits, in milliseconds since 1970; `None` where it is not
    /// known.
    pub since_ms: Option<i64>,
}

/// By the partition's number.
pub type Statuses = BTreeMap<i32, PartitionStatus>;

pub struct PartitionMetrics {
    told: Arc<Mutex<Statuses>>,
    progress: Option<ProgressWatch>,
    next_look: Instant,
}

impl PartitionMetrics {
    /// `service` as it stands in the names of its metrics; `done` is what is not yet done to the
    /// messages that it is behind by: `stored`.
    pub fn new(service: &str, done: &str) -> PartitionMetrics {
        let told = Arc::new(Mutex::new(Statuses::new()));
        let meter = global::meter("tally");
        let state: Observe = |to, of, status| {
            to.observe(1.0, &[of, KeyValue::new("state", status.state)]);
        };
        let offsets: Observe = |to, of, status| {
            if let Some(lag) = status.lag {
                to.observe(lag.offsets as f64, &[of]);
            }
        };
        let seconds: Observe = |to, of, status| {
            let now_ms = Timestamp::now().as_millisecond();
            if let Some(age_ms) = status.lag.and_then(|lag| lag.age_ms(now_ms)) {
                to.observe(age_ms as f64 / 1000.0, &[of]);
            }
        };
        meter
            .f64_observable_gauge(format!("tally_{service}_partition_state"))
            .with_description("1, for the state that each partition is in which this service holds")
            .with_callback(of_each(&told, state))
            .build();
        meter
            .f64_observable_gauge(format!("tally_{service}_lag"))
            .with_description(format!("Offsets of a partition that are not {done} yet"))
            .with_callback(of_each(&told, offsets))
            .build();
        meter
            .f64_observable_gauge(format!("tally_{service}_lag_seconds"))
            .with_description(format!(
                "For how long the oldest message of a partition waits that is not {done} yet"
            ))
            .with_callback(of_each(&told, seconds))
            .build();
        PartitionMetrics { told, progress: None, next_look: Instant::now() }
    }

    /// Readiness says, too, which partitions do not get on.
    #[must_use]
    pub fn watched(mut self, progress: ProgressWatch) -> PartitionMetrics {
        self.progress = Some(progress);
        self
    }

    /// Looks at the partitions that the service holds, once a second: of others nothing is told. To
    /// be called often.
    pub fn tell(&mut self, statuses: impl FnOnce() -> Statuses) {
        let now = Instant::now();
        if now >= self.next_look {
            self.next_look = now + INTERVAL;
            let statuses = statuses();
            if let Some(progress) = &mut self.progress {
                progress.look(&statuses, now);
            }
            self.set(statuses);
        }
    }

    /// Tells of these partitions from now on.
    pub fn set(&self, statuses: Statuses) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = statuses;
    }
}

impl Drop for PartitionMetrics {
    /// Who has ended holds nothing.
    fn drop(&mut self) {
        self.set(Statuses::new());
    }
}

impl Lag {
    fn age_ms(self, now_ms: i64) -> Option<i64> {
        if self.offsets == 0 {
            return Some(0);
        }
        self.since_ms.map(|since_ms| (now_ms - since_ms).max(0))
    }
}

/// Tells a metric's value of one partition, if it has one; the label says which.
type Observe = fn(&dyn AsyncInstrument<f64>, KeyValue, &PartitionStatus);

/// A callback that tells a metric's value of each partition.
fn of_each(
    told: &Arc<Mutex<Statuses>>,
    observe: Observe,
) -> impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static {
    let told = Arc::clone(told);
    move |to| {
        for (partition, status) in &*told.lock().unwrap_or_else(PoisonError::into_inner) {
            observe(to, KeyValue::new("partition", i64::from(*partition)), status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_waits_is_no_age_and_what_is_not_known_is_none() {
        assert_eq!(Lag { offsets: 0, since_ms: Some(5) }.age_ms(9), Some(0));
        assert_eq!(Lag { offsets: 1, since_ms: Some(5) }.age_ms(9), Some(4));
        assert_eq!(Lag { offsets: 1, since_ms: Some(5) }.age_ms(4), Some(0), "a clock went back");
        assert_eq!(Lag { offsets: 1, since_ms: None }.age_ms(9), None);
    }
}
