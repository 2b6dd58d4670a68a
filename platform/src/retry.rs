//! Trying again: how long to wait between two tries, and the loops that wait.
//!
//! ```text
//! call ──Ok──► done
//!  ▲  └──Err──► tell (health, log) ──► Backoff::next ──► wait, unless stop is cancelled ─┐
//!  └─────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::thread;
use std::time::{Duration, Instant};

use tally_kafka::TopicError;
use tokio_util::sync::CancellationToken;

use crate::quiet_log::QuietLog;

/// How soon a wait of a thread notices that it is to stop.
const STOP_LATENCY: Duration = Duration::from_millis(50);

/// Between two questions to brokers that do not answer, and between two log lines about it.
const BROKER_RETRY: Duration = Duration::from_secs(1);
const BROKER_REMINDER: Duration = Duration::from_secs(30);
/// How long a topic may be unknown to a broker that answers, before it is not there.
const MISSING: Duration = Duration::from_secs(10);

/// Waits between tries: the first one, then twice as long each time, up to the longest.
///
/// ```
/// use std::time::Duration;
/// use tally_platform::retry::Backoff;
///
/// let mut backoff = Backoff::doubling(Duration::from_millis(200), Duration::from_secs(5));
/// assert_eq!(backoff.next(), Duration::from_millis(200));
/// assert_eq!(backoff.next(), Duration::from_millis(400));
/// assert_eq!(backoff.failures(), 2);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    jitter_seed: Option<u64>,
    failures: u32,
}

impl Backoff {
    pub const fn doubling(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, jitter_seed: None, failures: 0 }
    }

    /// The same wait each time.
    pub const fn constant(wait: Duration) -> Backoff {
        Backoff::doubling(wait, wait)
    }

    /// Varies each wait between three quarters and five quarters of it, in a sequence that the seed
    /// decides, so that those that wait for the same server do not ask it all at once.
    pub const fn with_jitter(self, seed: u64) -> Backoff {
        Backoff { jitter_seed: Some(seed), ..self }
    }

    /// The wait after one more failure.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and is no iterator")]
    pub fn next(&mut self) -> Duration {
        let whole = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        match self.jitter_seed {
            None => whole,
            Some(seed) => {
                let share = mix(seed ^ u64::from(self.failures) << 32) % 512;
                whole.mul_f64((768 + share) as f64 / 1024.0)
            }
        }
    }

    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// SplitMix64's last step.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Calls until it succeeds; `None` if `stop` is cancelled first, which also ends a call on its way.
/// `failed` is told each error and the wait that follows.
///
/// ```
/// # use std::time::Duration;
/// # use tally_platform::retry::{Backoff, until_ok};
/// # use tokio_util::sync::CancellationToken;
/// # async fn ask() -> Result<u32, std::io::Error> { Ok(7) }
/// # async fn example() {
/// let stop = CancellationToken::new();
/// let backoff = Backoff::constant(Duration::from_secs(1));
/// let answer = until_ok(&stop, backoff, ask, |error, wait| {
///     tracing::warn!(%error, ?wait, "the schema registry does not answer; asking it again");
/// });
/// assert_eq!(answer.await, Some(7));
/// # }
/// ```
pub async fn until_ok<T, E, F: Future<Output = Result<T, E>>>(
    stop: &CancellationToken,
    mut backoff: Backoff,
    mut call: impl FnMut() -> F,
    mut failed: impl FnMut(E, Duration),
) -> Option<T> {
    loop {
        let error = match stop.run_until_cancelled(call()).await? {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let wait = backoff.next();
        failed(error, wait);
        stop.run_until_cancelled(tokio::time::sleep(wait)).await?;
    }
}

/// Waits in a thread; `None` once `stop` is cancelled, which is noticed within 50 ms.
pub fn pause(stop: &CancellationToken, wait: Duration) -> Option<()> {
    let begin = Instant::now();
    while !stop.is_cancelled() {
        let left = wait.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Some(());
        }
        thread::sleep(left.min(STOP_LATENCY));
    }
    None
}

/// Asks about a topic until the Kafka brokers answer; `None` once `stop` is cancelled. Blocks the
/// thread.
///
/// That a topic is not there is an answer only if it stays so for 10 seconds: a broker learns of a
/// new topic after it was made.
pub fn until_brokers_answer<T>(
    stop: &CancellationToken,
    mut ask: impl FnMut() -> Result<T, TopicError>,
) -> Result<Option<T>, TopicError> {
    let mut log = QuietLog::every(BROKER_REMINDER);
    let mut missing: Option<Instant> = None;
    while !stop.is_cancelled() {
        match ask() {
            Ok(answer) => return Ok(Some(answer)),
            Err(error @ TopicError::Missing { .. }) => match missing {
                None => missing = Some(Instant::now()),
                Some(since) if since.elapsed() < MISSING => {}
                Some(_) => return Err(error),
            },
            Err(error @ TopicError::Unavailable { .. }) => {
                missing = None;
                if let Some(failures) = log.failed(Instant::now()) {
                    tracing::warn!(
                        %error, failures,
                        "the Kafka brokers do not answer; asking again"
                    );
                }
            }
        }
        if pause(stop, BROKER_RETRY).is_none() {
            break;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = Backoff::doubling(FIRST, LONGEST);
        let mut jittered = Backoff::doubling(FIRST, LONGEST).with_jitter(3);
        for tries in 0..40 {
            let whole = FIRST.saturating_mul(1 << tries.min(16)).min(LONGEST);
            assert_eq!((backoff.failures(), backoff.next()), (tries, whole));
            let wait = jittered.next();
            assert!(wait >= whole.mul_f64(0.75) && wait < whole.mul_f64(1.25), "{tries} {wait:?}");
        }
        let mut constant = Backoff::constant(FIRST);
        assert_eq!((constant.next(), constant.next()), (FIRST, FIRST));
    }

    #[test]
    fn seeds_do_not_wait_alike() {
        let backoff = Backoff::doubling(FIRST, LONGEST);
        let waits: Vec<Duration> = (0..8).map(|seed| backoff.with_jitter(seed).next()).collect();
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }

    #[tokio::test]
    async fn calls_go_on_until_one_succeeds() {
        let (stop, mut calls, mut waits) = (CancellationToken::new(), 0, Vec::new());
        let call = || {
            calls += 1;
            std::future::ready(if calls < 3 { Err("not yet") } else { Ok(calls) })
        };
        let (first, longest) = (Duration::from_millis(1), Duration::from_millis(2));
        let answer = until_ok(&stop, Backoff::doubling(first, longest), call, |error, wait| {
            waits.push((error, wait));
        });
        assert_eq!(answer.await, Some(3));
        assert_eq!(waits, [("not yet", first), ("not yet", longest)]);
    }

    #[tokio::test]
    async fn a_wait_ends_when_it_is_to_stop() {
        let stop = CancellationToken::new();
        let call = || std::future::ready(Err::<(), _>("never"));
        let answer = until_ok(&stop, Backoff::constant(LONGEST), call, |_, _| stop.cancel());
        assert_eq!(answer.await, None);
        assert_eq!(pause(&stop, LONGEST), None);
        assert_eq!(pause(&CancellationToken::new(), Duration::ZERO), Some(()));
    }
}
