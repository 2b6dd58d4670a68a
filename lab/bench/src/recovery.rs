//! A killed aggregator: from SIGKILL, with a backlog, to caught up; beside one that nobody kills.

use std::time::{Duration, Instant};

use indicatif::HumanCount;

use super::figures::{Figure, Unit};
use super::rig::{Case, Rig};

const NAME: &str = "recovery";
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(5);

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    // The first flush, of a second, takes half of it.
    let increments: u64 = rig.size(28_000_000, 20_000_000);
    let case = Case::new(rig, NAME).await?;
    let sent = case.load(&format!("--count {increments}")).await?;
    let each = sent.increments / sent.messages;

    let undisturbed = Case::with(rig, "undisturbed", 1, |config| {
        config.kafka.increments.clone_from(&case.config.kafka.increments)
    })
    .await?;
    undisturbed.start("sink")?;
    let aggregator = undisturbed.start("aggregator")?;
    let calm = undisturbed.aggregated(&aggregator, sent.messages).await?;
    for name in ["aggregator", "sink"] {
        undisturbed.stop(name).await?;
    }

    // The case's services were made before the other's, and so was their configuration.
    let case = Case::new(rig, NAME).await?;
    case.start("sink")?;
    case.start("aggregator")?;
    let begun = Instant::now();
    let committed = loop {
        let committed = case.committed()?;
        if committed > 0 {
            break committed;
        }
        case.check_runs("aggregator")?;
        anyhow::ensure!(begun.elapsed() < PATIENCE, "{committed} messages after {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    };
    let left = sent.increments - committed * each;
    anyhow::ensure!(
        left > 0,
        "the aggregator had committed all {increments} increments before it was killed"
    );
    let killed = Instant::now();
    case.kill("aggregator").await?;
    let aggregator = case.start("aggregator")?;
    let recovered = case.aggregated(&aggregator, sent.messages).await?;
    let (first, whole) = recovered.times();
    case.until_stored(PATIENCE).await?;
    let stored = killed.elapsed();
    for name in ["aggregator", "sink"] {
        case.stop(name).await?;
    }
    let wrong = case.verify(std::slice::from_ref(&sent)).await?.err();

    let name = format!("SIGKILL with {} increments to go", HumanCount(left));
    let figure = Figure::new(NAME, name, whole.as_secs_f64(), Unit::Seconds)
        .beside("the same rest, nobody killed", calm.last_of(committed).as_secs_f64())
        .detail("first commit after", format!("{:.1} s", first.as_secs_f64()))
        .detail("stored after", format!("{:.1} s", stored.as_secs_f64()))
        .detail("session timeout", format!("{} ms", case.config.aggregator.session_timeout_ms))
        .verified(wrong);
    Ok(vec![figure])
}
