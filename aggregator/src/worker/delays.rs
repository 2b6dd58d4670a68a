//! What takes long without an error: the flush in flight, and the steps that come before a
//! partition is counted. Nothing is wrong with either, but partitions stand still meanwhile, so
//! readiness says which and why.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::{Timestamp, Unit};
use tally_kafka::TRANSACTION_TIMEOUT;
use tally_platform::health::Condition;

/// When a step counts as one that takes long.
const LONG: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(1);
/// The states of a partition that end by themselves, and soon as a rule.
const PASSING: [&str; 3] = ["locating", "restoring", "parked"];

/// Whether flushes commit.
pub(crate) struct FlushDelay {
    commits: Condition,
    is_told: bool,
}

impl FlushDelay {
    pub(crate) fn new(commits: Condition) -> FlushDelay {
        commits.set(true, "");
        FlushDelay { commits, is_told: false }
    }

    pub(crate) fn committed(&mut self) {
        self.is_told = false;
        self.commits.set(true, "");
    }

    pub(crate) fn failed(&mut self, reason: String) {
        self.is_told = false;
        self.commits.set(false, reason);
    }

    /// To be called while a flush is in flight that was taken at `started`.
    pub(crate) fn look(&mut self, started: Instant) {
        if self.is_told || started.elapsed() < TRANSACTION_TIMEOUT {
            return;
        }
        self.is_told = true;
        let timeout_s = TRANSACTION_TIMEOUT.as_secs();
        tracing::warn!(
            timeout_s,
            "Kafka has not answered a flush for as long as a transaction may take; its partitions \
             wait, and nothing is counted twice"
        );
        let since = Timestamp::now() - started.elapsed();
        let since = since.round(Unit::Second).unwrap_or(since);
        self.commits.set(false, format!("Kafka has not answered the flush of {since} yet"));
    }
}

/// The partitions that are not counted yet, and what they wait for.
pub(crate) struct StateDelays {
    /// Holds while none takes long.
    none: Condition,
    looked: Instant,
    since: BTreeMap<i32, (&'static str, Instant)>,
}

impl StateDelays {
    pub(crate) fn new(none: Condition) -> StateDelays {
        none.set(true, "");
        StateDelays { none, looked: Instant::now(), since: BTreeMap::new() }
    }

    /// To be called often, with the state of each partition that is held.
    pub(crate) fn look(&mut self, states: impl FnOnce() -> Vec<(i32, &'static str)>) {
        let now = Instant::now();
        if now.duration_since(self.looked) < LOOK {
            return;
        }
        self.looked = now;
        let long = self.update(states(), now);
        self.none.set(long.is_empty(), long.join("; "));
    }

    fn update(&mut self, states: Vec<(i32, &'static str)>, now: Instant) -> Vec<String> {
        let before = std::mem::take(&mut self.since);
        for (partition, state) in states.into_iter().filter(|(_, state)| PASSING.contains(state)) {
            let since = before.get(&partition).filter(|(was, _)| *was == state);
            let since = since.map_or(now, |(_, since)| *since);
            self.since.insert(partition, (state, since));
        }
        let long = self.since.iter().filter_map(|(partition, (state, since))| {
            let took = now.duration_since(*since);
            (took >= LONG)
                .then(|| format!("partition {partition}: {state} for {} s", took.as_secs()))
        });
        long.collect()
    }
}

#[cfg(test)]
mod tests {
    use tally_platform::health::Health;

    use super::*;

    #[test]
    fn a_state_that_lasts_is_told_until_it_is_over() {
        let health = Health::new();
        let mut delays = StateDelays::new(health.condition("partitions are counted soon"));
        let begin = Instant::now();
        let mut at = |seconds, state| {
            delays.update(vec![(0, "counting"), (3, state)], begin + Duration::from_secs(seconds))
        };
        assert!(at(0, "locating").is_empty());
        assert!(at(9, "locating").is_empty());
        assert_eq!(at(12, "locating"), ["partition 3: locating for 12 s"]);
        assert!(at(13, "restoring").is_empty(), "another step");
        assert_eq!(at(23, "restoring"), ["partition 3: restoring for 10 s"]);
        assert!(at(24, "counting").is_empty());
        assert!(at(60, "stopped").is_empty(), "a standstill, which is told by itself");
    }

    #[test]
    fn a_flush_without_an_answer_is_told_after_its_transactions_time() {
        let health = Health::new();
        let mut flush = FlushDelay::new(health.condition("flushes commit"));
        let Some(started) = Instant::now().checked_sub(TRANSACTION_TIMEOUT) else { return };
        flush.look(Instant::now());
        assert_eq!(health.ready(), Ok(()));
        flush.look(started);
        let told = health.ready().unwrap_err();
        assert!(told.contains("has not answered the flush of 20"), "{told}");
        flush.committed();
        assert_eq!(health.ready(), Ok(()));
    }
}
