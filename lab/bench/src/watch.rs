//! Watching: `tally reconciler watch` beside everything else at a fixed rate, and how long it takes
//! until what is stored is proven.
//!
//! ```text
//!  tally load --rate ──► increments ──► aggregator ──► deltas ──► sink ──► counts
//!                             │                                              │ ledger: stored
//!                             └──► watch: verified_through ◄─────────────────┘
//!                          every two seconds: when was that stored?
//! ```

use std::time::{Duration, Instant};

use indicatif::HumanCount;

use super::figures::{Figure, Unit};
use super::measure::{Meter, shares};
use super::rig::{Case, Rig};
use super::trial::{start_all, stop_all};

const NAME: &str = "watch";
const RATE: u64 = 1_000_000;
/// A look costs ClickHouse some CPU: it must not be much of what is measured.
const LOOK: Duration = Duration::from_secs(2);
/// The age that is allowed; what is proven later misses the target.
const TARGET_SECONDS: f64 = 60.0;
/// How long the rest may take to be stored and proven.
const PATIENCE: Duration = Duration::from_secs(180);

/// How far the store and the watch were, in offsets of all partitions together.
struct Sample {
    at: Instant,
    stored: u64,
    verified: u64,
}

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let seconds = rig.size(120, 20);
    let case = Case::new(rig, NAME).await?;
    let mut all = start_all(&case).await?;
    all.push(case.start_ready(NAME).await?);
    case.until_merged().await?;
    let mut load = case.start_load(&format!("--rate {RATE} --seconds {seconds}"))?;
    let meter = Meter::start(all)?;
    let (begun, mut samples) = (Instant::now(), Vec::new());
    while !load.has_ended()? {
        tokio::time::sleep(LOOK).await;
        samples.push(sample(&case).await?);
    }
    let sent = load.finish().await?;
    let (used, took) = (meter.read()?, begun.elapsed());
    case.until_stored(PATIENCE).await?;
    let ends = samples.last().map_or(0, |sample| sample.stored).max(sample(&case).await?.stored);
    while samples.last().is_none_or(|sample| sample.verified < ends) {
        anyhow::ensure!(begun.elapsed() < took + PATIENCE, "not proven after {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
        samples.push(sample(&case).await?);
    }
    let mismatches = case.metric(NAME, "tally_reconciler_mismatch").await?;
    case.stop(NAME).await?;
    stop_all(&case).await?;
    let wrong = case.verify(std::slice::from_ref(&sent)).await?.err();

    let ages = ages(&samples);
    let oldest = ages.iter().copied().fold(0.0, f64::max);
    let mean = ages.iter().sum::<f64>() / ages.len().max(1) as f64;
    let watch = used.iter().find(|used| used.name == NAME);
    let share = watch.map_or(0.0, |watch| watch.cpu.as_secs_f64() / took.as_secs_f64());
    let increments = sent.increments;
    let each = watch.map_or(0.0, |watch| watch.micros_each(increments));
    let title = format!("batches of 500, {}/s: longest from stored to proven", HumanCount(RATE));
    Ok(vec![
        Figure::new(NAME, title, oldest, Unit::Seconds)
            .beside("allowed", TARGET_SECONDS)
            .cpu_us(each)
            .peak_bytes(watch.map_or(0, |watch| watch.peak_bytes))
            .detail("on average", format!("{mean:.1} s"))
            .detail("of one core", format!("{:.1} %", share * 100.0))
            .detail("load", format!("{:.2}M/s for {seconds} s", sent.sent_per_second() / 1e6))
            .detail("CPU", shares(&used, increments))
            .sound(wrong.is_none() && mismatches == 0)
            .detail("verify", wrong.unwrap_or_else(|| String::from("clean"))),
    ])
}

async fn sample(case: &Case<'_>) -> anyhow::Result<Sample> {
    let stored = case.stored().await?.iter().sum::<i64>().cast_unsigned();
    let verified = case.metric(NAME, "tally_reconciler_verified_through").await?;
    Ok(Sample { at: Instant::now(), stored, verified })
}

/// At each sample, for how many seconds something had been stored that was not proven yet.
fn ages(samples: &[Sample]) -> Vec<f64> {
    let age = |sample: &Sample| {
        let first = samples.iter().find(|earlier| earlier.stored > sample.verified);
        first.map_or(0.0, |first| sample.at.saturating_duration_since(first.at).as_secs_f64())
    };
    samples.iter().map(age).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_ages_until_it_is_proven() {
        let begun = Instant::now();
        let at = |second, stored, verified| Sample {
            at: begun + Duration::from_secs(second),
            stored,
            verified,
        };
        let samples = [at(0, 0, 0), at(1, 10, 0), at(3, 20, 0), at(4, 30, 10), at(5, 30, 30)];
        assert_eq!(ages(&samples), [0.0, 0.0, 2.0, 1.0, 0.0]);
    }
}
