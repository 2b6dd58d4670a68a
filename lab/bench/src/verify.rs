//! Verifying: a full topic replayed and compared with what is stored, beside the aggregator's drain
//! of the same topic.
//!
//! ```text
//!  tally load ──► increments ──► tally aggregator ──► deltas ──► tally sink ──► counts
//!                     │          yardstick                                        │
//!                     └────────► tally reconciler verify ◄────────────────────────┘
//!                                measured: the replay, and beside it all from start to end
//! ```

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use super::figures::{Figure, Unit};
use super::measure;
use super::rig::{Case, Rig, Running};

const NAME: &str = "verify";
const LOOK: Duration = Duration::from_millis(20);
const STORED_PATIENCE: Duration = Duration::from_secs(300);

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let singles = rig.size(30_000_000, 3_000_000);
    let batches = rig.size(100_000_000, 15_000_000);
    let distinct = rig.size(40_000_000, 5_000_000);
    let cases = [
        ("singles", "singles, 1 million zipf keys", format!("--batch 0 --count {singles}")),
        ("batches", "batches of 500, 1 million zipf keys", format!("--count {batches}")),
        (
            "distinct",
            "batches of 500, 10 million uniform keys",
            format!("--keys 10000000 --distribution uniform --count {distinct}"),
        ),
    ];
    let mut figures = Vec::new();
    for (name, title, load) in cases {
        figures.push(verify(rig, name, title, &load).await?);
    }
    Ok(figures)
}

async fn verify(rig: &Rig, name: &str, title: &str, load: &str) -> anyhow::Result<Figure> {
    let case = Case::new(rig, &format!("verify-{name}")).await?;
    let sent = case.load(load).await?;
    let aggregator = case.start("aggregator")?;
    let drained = case.aggregated(&aggregator, sent.messages).await?.steady();
    case.stop("aggregator").await?;
    case.start_ready("sink").await?;
    case.until_stored_by(&["sink"], STORED_PATIENCE).await?;
    case.stop("sink").await?;
    case.until_merged().await?;

    let begun = Instant::now();
    let verifier: Running<Value> = case.start_configured("reconciler verify --json")?;
    let (report, cpu, peak_bytes) = watch(verifier).await?;
    let took = begun.elapsed();
    let wrong = case.verify(std::slice::from_ref(&sent)).await?.err();
    let each = sent.increments as f64 / sent.messages as f64;
    let replay_seconds = report["replay_seconds"].as_f64().context("the report says so")?;
    // As the aggregator's rate is without its start.
    let replayed = sent.increments as f64 / replay_seconds;
    Ok(Figure::new(NAME, title, replayed, Unit::IncrementsPerSecond)
        .beside("the aggregator's drain", drained.per_second * each)
        .cpu_us(cpu.as_secs_f64() * 1e6 / sent.increments as f64)
        .peak_bytes(peak_bytes)
        .detail(
            "all of it",
            format!(
                "{:.1} s, {replay_seconds:.1} s of them replaying: {:.2}M/s",
                took.as_secs_f64(),
                sent.increments as f64 / took.as_secs_f64() / 1e6
            ),
        )
        .detail("the aggregator's CPU", format!("{:.3} µs", drained.cpu_us / each))
        .detail("verdict", report["verdict"].to_string())
        .verified(wrong))
}

/// What a verify printed, with the CPU that it took and the most memory that it had.
async fn watch(mut verifier: Running<Value>) -> anyhow::Result<(Value, Duration, u64)> {
    let pid = verifier.watched(NAME).pid;
    let (mut cpu, mut peak_bytes) = (Duration::ZERO, 0);
    while !verifier.has_ended()? {
        // It may end while it is looked at.
        if let (Ok(used), Ok(peak)) = (measure::cpu(pid), measure::peak_bytes(pid)) {
            (cpu, peak_bytes) = (used, peak);
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok((verifier.finish().await?, cpu, peak_bytes))
}
