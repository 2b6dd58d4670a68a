//! Members added and taken away under load: for how long a partition stands still, and that nothing
//! is lost over it.
//!
//! ```text
//!  tally load, steady ──► 1 → 4 → 2 aggregators ──► 1 → 3 → 1 sinks
//!                             │ committed offsets       │ the ledger's positions
//!                             └────────── looks ────────┴──► by step, the longest that any
//!                                                            partition stood still
//! ```
//!
//! Flushes and inserts come in steps anyway, so each pause stands beside the longest of a time when
//! nobody came or went.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use super::figures::{Figure, Unit};
use super::rig::{Case, Rig};

const NAME: &str = "scale";
const MEMBERS: usize = 4;
const LOOK: Duration = Duration::from_millis(20);
/// How long members take to come up and to end, all steps together.
const SLACK_SECONDS: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(300);
/// What is half as long again as in calm is a pause.
const BEYOND_CALM: f64 = 1.5;

/// How far each partition was, at one moment.
#[derive(Clone, Debug)]
struct OffsetSample {
    at: Instant,
    next: Vec<i64>,
}

#[derive(Default)]
struct Samples {
    aggregated: Vec<OffsetSample>,
    stored: Vec<OffsetSample>,
}

impl Samples {
    fn of(&self, kind: &str) -> &[OffsetSample] {
        if kind == "aggregator" { &self.aggregated } else { &self.stored }
    }
}

/// Members come one by one or in numbers, and go in pairs.
struct Step {
    kind: &'static str,
    from: usize,
    to: usize,
}

const STEPS: [Step; 4] = [
    Step { kind: "aggregator", from: 1, to: 4 },
    Step { kind: "aggregator", from: 4, to: 2 },
    Step { kind: "sink", from: 1, to: 3 },
    Step { kind: "sink", from: 3, to: 1 },
];

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let case = Case::with(rig, NAME, MEMBERS, |_| ()).await?;
    let outcome = measure(&case).await;
    // Where that failed they still run.
    case.stop_all().await?;
    outcome
}

async fn measure(case: &Case<'_>) -> anyhow::Result<Vec<Figure>> {
    let window = Duration::from_secs(case.rig.size(30, 12));
    let rate: u64 = case.rig.size(100_000, 20_000);
    for kind in ["aggregator", "sink"] {
        case.start_ready(&member(kind, 1)).await?;
    }
    let seconds = window.as_secs() * (STEPS.len() as u64 + 2) + SLACK_SECONDS;
    let mut load = case.start_load(&format!("--rate {rate} --seconds {seconds}"))?;
    let samples = RefCell::new(Samples::default());
    let steps = async {
        // It starts meanwhile.
        tokio::time::sleep(window).await;
        let calm = Instant::now();
        tokio::time::sleep(window).await;
        let mut begun = Vec::new();
        for step in &STEPS {
            begun.push(Instant::now());
            take(case, step).await?;
            tokio::time::sleep(window).await;
            anyhow::ensure!(!load.has_ended()?, "the load has ended before the last step");
        }
        Ok((calm, begun, Instant::now()))
    };
    let (calm, begun, end) = tokio::select! {
        outcome = steps => outcome?,
        outcome = watch(case, &samples) => match outcome? {},
    };
    let sent = load.finish().await?;
    let left = ["aggregator-1", "aggregator-2", "sink-1"];
    case.until_stored_by(&left, PATIENCE).await?;
    for name in left {
        case.stop(name).await?;
    }
    let wrong = case.verify(std::slice::from_ref(&sent)).await?.err();

    let samples = samples.into_inner();
    let ends = begun.iter().skip(1).chain([&end]);
    let figures = STEPS.iter().zip(&begun).zip(ends).map(|((step, begun), end)| {
        let calm = longest(samples.of(step.kind), calm, calm + window);
        let pause = longest(samples.of(step.kind), *begun, *end);
        let over_after = over_after(samples.of(step.kind), *begun, *end, calm.mul_f64(BEYOND_CALM));
        let name = format!("{}s, {} to {}", step.kind, step.from, step.to);
        Figure::new(NAME, name, pause.as_secs_f64(), Unit::Seconds)
            .beside("nobody comes or goes", calm.as_secs_f64())
            .detail("it was over after", format!("{:.1} s", over_after.as_secs_f64()))
            .detail("load", format!("{rate} incr/s, {} partitions", case.config.kafka.partitions))
            .verified(wrong.clone())
    });
    Ok(figures.collect())
}

fn member(kind: &str, number: usize) -> String {
    format!("{kind}-{number}")
}

async fn take(case: &Case<'_>, step: &Step) -> anyhow::Result<()> {
    for number in step.from + 1..=step.to {
        case.start(&member(step.kind, number))?;
    }
    for number in step.from + 1..=step.to {
        case.wait_ready(&member(step.kind, number)).await?;
    }
    if step.to < step.from {
        // Both at once, as an orchestrator does it.
        let (one, other) = (member(step.kind, step.from - 1), member(step.kind, step.from));
        tokio::try_join!(case.stop(&one), case.stop(&other))?;
    }
    Ok(())
}

/// Samples until it is dropped.
async fn watch(case: &Case<'_>, samples: &RefCell<Samples>) -> anyhow::Result<Infallible> {
    loop {
        let next = tokio::task::block_in_place(|| case.log.committed())?;
        samples.borrow_mut().aggregated.push(OffsetSample { at: Instant::now(), next });
        let next = case.stored().await?;
        samples.borrow_mut().stored.push(OffsetSample { at: Instant::now(), next });
        tokio::time::sleep(LOOK).await;
    }
}

/// Times between `from` and `to` that a partition stood still, as its last progress and its next,
/// or the end.
fn pauses(samples: &[OffsetSample], from: Instant, to: Instant) -> Vec<(Instant, Instant)> {
    let partitions = samples.first().map_or(0, |sample| sample.next.len());
    let mut pauses = Vec::new();
    for partition in 0..partitions {
        let mut since = from;
        let mut last = None;
        for sample in samples.iter().filter(|sample| sample.at <= to) {
            let next = sample.next[partition];
            if last.is_some_and(|last| last != next) && sample.at >= from {
                pauses.push((since, sample.at));
                since = sample.at;
            }
            last = Some(next);
        }
        pauses.push((since, to));
    }
    pauses
}

fn longest(samples: &[OffsetSample], from: Instant, to: Instant) -> Duration {
    pauses(samples, from, to)
        .into_iter()
        .map(|(last, next)| next - last)
        .max()
        .expect("a topic has a partition")
}

/// After how long the longest pause was over; nothing if it was as long as usual.
fn over_after(samples: &[OffsetSample], from: Instant, to: Instant, usual: Duration) -> Duration {
    let longest = pauses(samples, from, to).into_iter().max_by_key(|(last, next)| *next - *last);
    longest
        .filter(|(last, next)| *next - *last > usual)
        .map_or(Duration::ZERO, |(_, next)| next - from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_that_stands_still_the_longest_is_the_pause() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let sample =
            |(ms, a, b): &(u64, i64, i64)| OffsetSample { at: at(*ms), next: vec![*a, *b] };
        let samples: Vec<_> =
            [(0, 0, 0), (100, 1, 1), (200, 2, 1), (300, 3, 1), (400, 4, 2), (500, 5, 3)]
                .iter()
                .map(sample)
                .collect();
        assert_eq!(longest(&samples, at(100), at(500)), Duration::from_millis(300));
        assert_eq!(
            over_after(&samples, at(100), at(500), Duration::from_millis(250)),
            Duration::from_millis(300)
        );
        assert_eq!(
            over_after(&samples, at(100), at(500), Duration::from_millis(350)),
            Duration::ZERO
        );
    }

    #[test]
    fn a_partition_that_never_goes_on_stands_still_to_the_end() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let samples = [
            OffsetSample { at: at(0), next: vec![7] },
            OffsetSample { at: at(900), next: vec![7] },
        ];
        assert_eq!(longest(&samples, at(0), at(1000)), Duration::from_secs(1));
    }
}
