//! How much the gateway takes at once.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, InsufficientCapacity, Quota};
use tally_platform::config;
use tally_platform::http::BodyRoom;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::metrics::{InFlight, Metrics};

/// Why something is not let in, or not now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{max} requests are in progress, the most allowed")]
    TooManyRequests { max: usize },
    #[error("{increments} increments are beyond the rate limit for {wait:.1?} more")]
    RateLimited { increments: usize, wait: Duration },
    /// However long one waits.
    #[error("{increments} increments; at most {most} are let through at once")]
    BeyondRateLimit { increments: usize, most: u32 },
}

pub(crate) struct Limits {
    max_in_flight: usize,
    in_flight: Arc<Semaphore>,
    /// Waits for all requests, those too whose body is still arriving.
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

    /// Keeps [`Limits::idle`] waiting until it is dropped.
    pub(crate) fn token(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// A place among the requests in flight, for one whose body is there.
    pub(crate) fn enter(
        &self,
        metrics: &Metrics,
        token: TaskTrackerToken,
        room: BodyRoom,
    ) -> Result<InFlight, Error> {
        match Arc::clone(&self.in_flight).try_acquire_owned() {
            Ok(permit) => Ok(metrics.in_flight(permit, token, room)),
            Err(_) => Err(Error::TooManyRequests { max: self.max_in_flight }),
        }
    }

    /// Returns once every token is dropped.
    pub(crate) async fn idle(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Takes `increments`, at least one, out of this second's allowance, all or none.
    pub(crate) fn allow(&self, increments: usize) -> Result<(), Error> {
        let Some(rate) = &self.rate else {
            return Ok(());
        };
        let Some(cells) = u32::try_from(increments).ok().and_then(NonZeroU32::new) else {
            return Err(Error::BeyondRateLimit { increments, most: u32::MAX });
        };
        match rate.check_n(cells) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_yet)) => {
                let wait = not_yet.wait_time_from(self.clock.now());
                Err(Error::RateLimited { increments, wait })
            }
            Err(InsufficientCapacity(most)) => Err(Error::BeyondRateLimit { increments, most }),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::Request;
    use tally_platform::http::BodyLimits;

    use super::*;
    use crate::problem::{Code, Problem};

    fn limits(max_in_flight: usize, per_second: u32) -> Limits {
        Limits::new(&config::Producer {
            max_in_flight,
            max_increments_per_second: NonZeroU32::new(per_second),
            ..config::Producer::default()
        })
    }

    #[tokio::test]
    async fn a_request_that_ends_makes_room_for_another() {
        let limits = limits(2, 0);
        let metrics = Metrics::new();
        let bodies = BodyLimits::new(100, 200);
        let enter = async || {
            let body = bodies.receive(Request::new(Body::from("{}"))).await.unwrap();
            limits.enter(&metrics, limits.token(), body.room)
        };
        let first = enter().await.unwrap();
        let _second = enter().await.unwrap();
        let problem = Problem::from(enter().await.err().unwrap());
        assert_eq!((problem.code, problem.retry_after_s), (Code::Overloaded, Some(1)));
        drop(first);
        assert!(enter().await.is_ok());
    }

    #[test]
    fn increments_beyond_the_rate_wait_for_their_turn() {
        let limits = limits(1, 10);
        limits.allow(10).unwrap();
        let problem = Problem::from(limits.allow(10).unwrap_err());
        assert_eq!((problem.code, problem.retry_after_s), (Code::RateLimited, Some(1)));
        let problem = Problem::from(limits.allow(11).unwrap_err());
        assert_eq!((problem.code, problem.retry_after_s), (Code::TooManyIncrements, None));
    }
}
