//! Everything at once at some rate: does the store keep up?

use std::time::{Duration, Instant};

use super::log::lag;
use super::measure::{Meter, Usage, WatchedProcess};
use super::rig::Case;
use tally_load::Summary;

const LOOK: Duration = Duration::from_secs(1);
/// How long a trial's rest may take to be stored.
const PATIENCE: Duration = Duration::from_secs(300);
/// A load that reaches less of its rate than this was not a load of that rate.
const REACHED: f64 = 0.98;
/// Lag is flat if it grows by less than this many seconds' worth from one third of a trial to the
/// next: flushes and inserts come in steps of a second.
const SLACK_SECONDS: f64 = 0.5;

pub(crate) const SERVICES: [&str; 4] = ["aggregator", "sink", "reader", "producer"];

/// All services of a case, running, and the parts of the stack that they use.
pub(crate) async fn start_all(case: &Case<'_>) -> anyhow::Result<Vec<WatchedProcess>> {
    let mut all = vec![case.rig.part("broker")?, case.rig.part("store")?];
    for name in SERVICES {
        all.push(case.start_ready(name).await?);
    }
    Ok(all)
}

pub(crate) async fn stop_all(case: &Case<'_>) -> anyhow::Result<()> {
    for name in SERVICES {
        case.stop(name).await?;
    }
    Ok(())
}

/// Messages, at one time of a trial.
#[derive(Clone, Copy)]
struct LagSample {
    at: Instant,
    logged: u64,
    /// Messages that are in Kafka, but not in ClickHouse.
    lag: u64,
    /// The part of `lag` that the aggregators have not committed.
    unread: u64,
}

pub(crate) struct Trial {
    asked: Option<u64>,
    pub(crate) sent: Summary,
    samples: Vec<LagSample>,
    /// What the processes used up to the last sample, the load among them.
    pub(crate) used: Vec<Usage>,
    pub(crate) rest: Duration,
}

impl Trial {
    /// Loads at this rate (none: as fast as it goes) and waits until everything is stored. Begins
    /// once the store has merged what was stored before.
    pub(crate) async fn run(
        case: &Case<'_>,
        all: &[WatchedProcess],
        rate: Option<u64>,
        batch: u64,
        seconds: u64,
    ) -> anyhow::Result<Trial> {
        case.until_merged().await?;
        let rate_arg = rate.map_or_else(String::new, |rate| format!("--rate {rate}"));
        let mut load =
            case.start_load(&format!("--batch {batch} --seconds {seconds} {rate_arg}"))?;
        let meter = Meter::start(all.iter().cloned().chain([load.watched("load")]))?;
        let mut used = Vec::new();
        let mut samples = Vec::new();
        let mut next = tokio::time::interval(LOOK);
        loop {
            next.tick().await;
            for name in SERVICES {
                case.check_runs(name)?;
            }
            // Between its end and the next line the load may be gone: then the sample before it is
            // the last one.
            if load.has_ended()? {
                break;
            }
            let Ok(read) = meter.read() else { break };
            used = read;
            let ends = tokio::task::block_in_place(|| case.log.ends())?;
            let stored = case.stored().await?;
            let committed = tokio::task::block_in_place(|| case.log.committed())?;
            samples.push(LagSample {
                at: Instant::now(),
                logged: ends.iter().sum::<i64>().cast_unsigned(),
                lag: lag(&ends, &stored),
                unread: lag(&ends, &committed),
            });
        }
        let sent = load.finish().await?;
        let rest = case.until_stored(PATIENCE).await?;
        Ok(Trial { asked: rate, sent, samples, used, rest })
    }

    /// Increments in each message.
    fn each(&self) -> f64 {
        self.sent.increments as f64 / self.sent.messages.max(1) as f64
    }

    /// Increments in the log when `used` was read.
    pub(crate) fn increments_seen(&self) -> u64 {
        let (first, last) = (self.samples.first(), self.samples.last());
        let messages = first.zip(last).map_or(0, |(first, last)| last.logged - first.logged);
        (messages as f64 * self.each()) as u64
    }

    /// Increments stored each second, while it ran.
    pub(crate) fn stored_per_second(&self) -> f64 {
        let (Some(first), Some(last)) = (self.samples.first(), self.samples.last()) else {
            return 0.0;
        };
        let stored = |sample: &LagSample| (sample.logged - sample.lag) as f64;
        (stored(last) - stored(first)) * self.each() / (last.at - first.at).as_secs_f64().max(1e-9)
    }

    /// How far behind the store was, in seconds of the load: mean of the middle third and of the
    /// last third of the trial.
    pub(crate) fn lag_seconds(&self) -> (f64, f64) {
        let third = self.samples.len() / 3;
        let mean = |samples: &[LagSample]| self.mean_seconds(samples, |sample| sample.lag);
        (mean(&self.samples[third..2 * third]), mean(&self.samples[2 * third..]))
    }

    /// How far behind the aggregators were, of that: mean of the last third.
    pub(crate) fn unread_seconds(&self) -> f64 {
        self.mean_seconds(&self.samples[2 * (self.samples.len() / 3)..], |sample| sample.unread)
    }

    fn mean_seconds(&self, samples: &[LagSample], messages: impl Fn(&LagSample) -> u64) -> f64 {
        let per_second = self.sent.sent_per_second() / self.each();
        let sum: u64 = samples.iter().map(messages).sum();
        sum as f64 / samples.len().max(1) as f64 / per_second.max(1e-9)
    }

    pub(crate) fn is_flat(&self) -> bool {
        let (middle, last) = self.lag_seconds();
        last <= middle + SLACK_SECONDS
    }

    /// The load had its rate, and the store kept up with it.
    pub(crate) fn is_sustained(&self) -> bool {
        self.asked.is_none_or(|rate| self.sent.sent_per_second() >= REACHED * rate as f64)
            && self.is_flat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trial of 12 s at 1000 messages of 10 increments a second, with this lag each second.
    fn trial(asked: u64, lags: [u64; 12]) -> Trial {
        let begun = Instant::now();
        let sample = |(second, lag)| LagSample {
            at: begun + Duration::from_secs(second),
            logged: 1000 * (second + 1),
            lag,
            unread: lag / 2,
        };
        Trial {
            asked: Some(asked),
            sent: Summary {
                increments: 120_000,
                messages: 12_000,
                bytes: 0,
                acknowledged: 120_000,
                failed: 0,
                sending_seconds: 12.0,
                seconds: 12.5,
                total: 0,
                checksum: String::new(),
                partitions: vec![],
            },
            samples: (0..).zip(lags).map(sample).collect(),
            used: vec![],
            rest: Duration::ZERO,
        }
    }

    #[test]
    fn a_lag_that_swings_is_flat_and_one_that_grows_is_not() {
        let swings = trial(10_000, [0, 1000, 0, 900, 100, 1000, 0, 900, 100, 1000, 100, 1000]);
        assert!(swings.is_sustained());
        let grows =
            trial(10_000, [0, 200, 400, 600, 800, 1000, 1200, 1400, 1600, 1800, 2000, 2200]);
        assert!(!grows.is_sustained());
        assert_eq!(grows.lag_seconds(), (1.1, 1.9));
        assert_eq!(grows.unread_seconds(), 0.95);
    }

    #[test]
    fn a_load_below_its_rate_sustains_nothing() {
        assert!(!trial(11_000, [0; 12]).is_sustained());
    }

    #[test]
    fn what_was_stored_is_what_came_less_the_lag_that_grew() {
        let grows = trial(10_000, [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100]);
        assert!((grows.stored_per_second() - 9000.0).abs() < 1e-6);
        assert_eq!(grows.increments_seen(), 110_000);
    }
}
