//! A flush without an answer. Nothing need be wrong, but its partitions stand still meanwhile, so
//! readiness says so.

use std::time::Instant;

use jiff::{Timestamp, Unit};
use tally_kafka::TRANSACTION_TIMEOUT;
use tally_platform::health::Condition;

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

#[cfg(test)]
mod tests {
    use tally_platform::health::Health;

    use super::*;

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
