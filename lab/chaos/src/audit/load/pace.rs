use std::time::{Duration, Instant};

/// What could not be sent in time is sent faster later, but not more than so much of it.
const MOST_BEHIND: Duration = Duration::from_secs(1);

/// Lets so many increments go a second, on average.
pub(super) struct Pace {
    per_second: f64,
    /// When the next increment is due.
    next: Instant,
}

impl Pace {
    pub(super) fn new(per_second: f64, now: Instant) -> Pace {
        Pace { per_second, next: now }
    }

    /// Takes what a message holds; it may go at the time that comes back.
    pub(super) fn take(&mut self, increments: usize, now: Instant) -> Instant {
        let due =
            now.checked_sub(MOST_BEHIND).map_or(self.next, |earliest| self.next.max(earliest));
        self.next = due + Duration::from_secs_f64(increments as f64 / self.per_second);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_far_apart_as_their_increments_take() {
        let start = Instant::now();
        let mut pace = Pace::new(100.0, start);
        assert_eq!(pace.take(50, start), start);
        assert_eq!(pace.take(1, start), start + Duration::from_millis(500));
        assert_eq!(pace.take(1, start), start + Duration::from_millis(510));
    }

    #[test]
    fn a_long_stop_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = Pace::new(100.0, start);
        pace.take(1, start);
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.take(1, later), later - MOST_BEHIND);
    }
}
