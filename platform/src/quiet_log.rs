//! Says a trouble that goes on for long a few times, not at each failure.

use std::time::{Duration, Instant};

/// Decides which failures of a row are worth a log line: the first, then one in each interval.
/// The first success after failures is worth a line too.
///
/// It writes nothing itself, so that each caller says what failed and what Tally does about it:
///
/// ```
/// use std::time::{Duration, Instant};
/// use tally_platform::quiet_log::QuietLog;
///
/// # fn ask() -> Result<(), std::io::Error> { Ok(()) }
/// let mut log = QuietLog::every(Duration::from_secs(30));
/// match ask() {
///     Err(error) => {
///         if let Some(failures) = log.failed(Instant::now()) {
///             tracing::warn!(%error, failures, "ClickHouse does not answer; asking it again");
///         }
///     }
///     Ok(()) => {
///         if let Some(failures) = log.succeeded() {
///             tracing::info!(failures, "ClickHouse answers again");
///         }
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct QuietLog {
    reminder: Duration,
    /// Since the last success.
    failures: u64,
    last_line: Option<Instant>,
}

impl QuietLog {
    /// With a line in each `reminder`, while it lasts.
    pub const fn every(reminder: Duration) -> QuietLog {
        QuietLog { reminder, failures: 0, last_line: None }
    }

    /// With one line, however long it lasts.
    pub const fn once() -> QuietLog {
        QuietLog::every(Duration::MAX)
    }

    /// Notes a failure; if a line is due, returns how many failures there were in a row.
    pub fn failed(&mut self, now: Instant) -> Option<u64> {
        self.failures += 1;
        let is_due = self.last_line.is_none_or(|at| now.duration_since(at) >= self.reminder);
        is_due.then(|| {
            self.last_line = Some(now);
            self.failures
        })
    }

    /// Notes a success; if it ends a row of failures, returns how many they were.
    pub fn succeeded(&mut self) -> Option<u64> {
        let failures = std::mem::take(&mut self.failures);
        self.last_line = None;
        (failures > 0).then_some(failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_said_when_it_begins_now_and_then_and_when_it_is_over() {
        let begin = Instant::now();
        let mut log = QuietLog::every(Duration::from_secs(300));
        assert_eq!(log.succeeded(), None);
        assert_eq!(log.failed(begin), Some(1));
        for second in 1..300 {
            assert_eq!(log.failed(begin + Duration::from_secs(second)), None);
        }
        let later = begin + Duration::from_secs(300);
        assert_eq!(log.failed(later), Some(301));
        assert_eq!(log.succeeded(), Some(301));
        assert_eq!(log.succeeded(), None);
        assert_eq!(log.failed(later), Some(1));
    }

    #[test]
    fn once_is_once_until_it_is_over() {
        let begin = Instant::now();
        let mut log = QuietLog::once();
        assert_eq!(log.failed(begin), Some(1));
        assert_eq!(log.failed(begin + Duration::from_secs(1 << 30)), None);
        assert_eq!(log.succeeded(), Some(2));
        assert_eq!(log.failed(begin), Some(1));
    }
}
