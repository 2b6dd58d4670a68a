//! How much the gateway takes at once.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, InsufficientCapacity, Quota};
use tally_platform::config;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::metrics::{InFlight, Metrics};
use crate::problem::{Code, Problem};

/// When to try again while too many requests are in progress, in seconds.
const BUSY_RETRY_S: u64 = 1;

pub(crate) struct Limits {
    max_in_flight: usize,
    in_flight: Arc<Semaphore>,
    /// Waits for those in progress.
    tracker: TaskTracker,
    rate: Option<DefaultDirectRateLimiter>,
    clock: DefaultClock,
}

impl Limits {
    pub(crate) fn new(config: &config::Producer) -> Limits {
        Limits {
            max_in_flight: config.max_in_flight,
            in_flight: Arc::new(Semaphore::new(config.max_in_flight)),
            tracker: TaskTracker::new(),
            rate: config
                .max_increments_per_second
                .map(|most| DefaultDirectRateLimiter::direct(Quota::per_second(most))),
            clock: DefaultClock::default(),
        }
    }

    /// A place among the requests in progress, before anything of it is read.
    pub(crate) fn enter(&self, metrics: &Metrics) -> Result<InFlight, Problem> {
        match Arc::clone(&self.in_flight).try_acquire_owned() {
            Ok(permit) => Ok(metrics.in_flight(permit, self.tracker.token())),
            Err(_) => Err(overloaded(format!(
                "{} requests are in progress, the most allowed",
                self.max_in_flight
            ))),
        }
    }

    /// Returns once no request is in progress.
    pub(crate) async fn idle(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Takes `increments`, at least one, out of this second's allowance, all or none.
    pub(crate) fn allow(&self, increments: usize) -> Result<(), Problem> {
        let Some(rate) = &self.rate else {
            return Ok(());
        };
        let Some(cells) = u32::try_from(increments).ok().and_then(NonZeroU32::new) else {
            return Err(too_many(increments, u32::MAX));
        };
        match rate.check_n(cells) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_yet)) => {
                let wait = not_yet.wait_time_from(self.clock.now());
                let detail = format!(
                    "{increments} increments are beyond the rate limit for {wait:.1?} more"
                );
                Err(Problem::new(Code::RateLimited, detail).retry_after(whole_seconds(wait)))
            }
            Err(InsufficientCapacity(most)) => Err(too_many(increments, most)),
        }
    }
}

fn too_many(increments: usize, most: u32) -> Problem {
    let detail = format!("{increments} increments; at most {most} are let through at once");
    Problem::new(Code::TooManyIncrements, detail)
}

pub(crate) fn overloaded(detail: impl Into<String>) -> Problem {
    Problem::new(Code::Overloaded, detail).retry_after(BUSY_RETRY_S)
}

/// Rounded up, so that whoever waits so long has waited enough.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_in_flight: usize, per_second: u32) -> Limits {
        Limits::new(&config::Producer {
            max_in_flight,
            max_increments_per_second: NonZeroU32::new(per_second),
            ..config::Producer::default()
        })
    }

    #[test]
    fn a_request_that_ends_makes_room_for_another() {
        let limits = limits(2, 0);
        let metrics = Metrics::new();
        let first = limits.enter(&metrics).unwrap();
        let _second = limits.enter(&metrics).unwrap();
        let problem = limits.enter(&metrics).err().unwrap();
        assert_eq!((problem.code, problem.retry_after_s), (Code::Overloaded, Some(1)));
        drop(first);
        assert!(limits.enter(&metrics).is_ok());
    }

    #[test]
    fn increments_beyond_the_rate_wait_for_their_turn() {
        let limits = limits(1, 10);
        limits.allow(10).unwrap();
        let problem = limits.allow(10).unwrap_err();
        assert_eq!((problem.code, problem.retry_after_s), (Code::RateLimited, Some(1)));
        let problem = limits.allow(11).unwrap_err();
        assert_eq!((problem.code, problem.retry_after_s), (Code::TooManyIncrements, None));
    }

    #[test]
    fn a_wait_is_rounded_up_to_whole_seconds() {
        for (wait_ms, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_500, 60)] {
            assert_eq!(whole_seconds(Duration::from_millis(wait_ms)), seconds);
        }
    }
}
