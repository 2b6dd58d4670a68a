//! Aggregating: a full topic drained by a real aggregator, beside librdkafka alone on the same
//! topic.
//!
//! ```text
//!  tally load ──► increments ──► tally aggregator ──► deltas   measured, by what it commits
//!                          └───► discard                       yardstick, before and after:
//!                                                              the faster one counts
//! ```

use super::figures::{Figure, Unit};
use super::measure::{Meter, shares};
use super::rig::{Case, Rig};
use tally_load::Summary;

const NAME: &str = "aggregate";

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let singles = rig.size(30_000_000, 3_000_000);
    let batches = rig.size(100_000_000, 15_000_000);
    let distinct = rig.size(40_000_000, 5_000_000);
    Ok(vec![
        drain(
            rig,
            "singles",
            "singles, 1 million zipf keys",
            &format!("--batch 0 --count {singles}"),
        )
        .await?,
        drain(rig, "batches", "batches of 500, 1 million zipf keys", &format!("--count {batches}"))
            .await?,
        // Hardly any key repeats within a flush: sums are as large as they get.
        drain(
            rig,
            "distinct",
            "batches of 500, 10 million uniform keys",
            &format!("--keys 10000000 --distribution uniform --count {distinct}"),
        )
        .await?,
    ])
}

async fn drain(rig: &Rig, name: &str, case_name: &str, load: &str) -> anyhow::Result<Figure> {
    let case = Case::new(rig, name).await?;
    let sent = case.load(load).await?;
    let before = case.discard().await?;
    let aggregator = case.start("aggregator")?;
    let meter = Meter::start([aggregator.clone(), rig.part("broker")?])?;
    let drained = case.aggregated(&aggregator, sent.messages).await?;
    let used = meter.read()?;
    case.stop("aggregator").await?;
    let after = case.discard().await?;

    let deltas = tokio::task::block_in_place(|| case.log.deltas())?;
    let right =
        deltas.increments == sent.increments && deltas.fingerprint.to_string() == sent.checksum;
    let each = sent.increments as f64 / sent.messages as f64;
    let steady = drained.steady();
    let raw = if before.per_second() > after.per_second() { &before } else { &after };
    let raw_cpu_us = raw.cpu_seconds * 1e6 / sent.increments as f64;
    let (first, whole) = drained.times();
    Ok(Figure::new(NAME, case_name, steady.per_second * each, Unit::IncrementsPerSecond)
        .beside("consumed and discarded", raw.per_second() * each)
        .cpu_us(steady.cpu_us / each)
        .peak_bytes(used[0].peak_bytes)
        .detail("discard", format!("{raw_cpu_us:.3} µs"))
        .detail(
            "all of it",
            format!(
                "{:.1} s, first commit after {:.1} s",
                whole.as_secs_f64(),
                first.as_secs_f64()
            ),
        )
        .detail("CPU, start included", shares(&used, sent.increments))
        .detail("deltas", format!("{} in {} batches", deltas.rows, deltas.batches))
        .detail("loaded", loaded(&sent))
        .sound(right))
}

fn loaded(sent: &Summary) -> String {
    format!("{} at {:.2}M/s", sent.increments, sent.per_second() / 1e6)
}
