//! A restarted aggregator that must remember ids first: from its start to its first commit, beside
//! one without ids.
//!
//! ```text
//!  tally load ──► increments ──► aggregator, stopped once it has committed all
//!                     ▲
//!  the first of them again ──► aggregator, started again: remembers, then recognises
//! ```

use indicatif::HumanCount;

use super::figures::{Figure, Unit};
use super::measure::Meter;
use super::rig::{Case, Rig};

const NAME: &str = "rebuild";
/// Sent again once the aggregator is stopped.
const AGAIN: u64 = 1000;

struct Restart {
    first_commit_s: f64,
    peak_bytes: u64,
    /// Increments on `deltas`.
    counted: u64,
}

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    // Together with what is sent again, no more ids than the horizon holds.
    let horizon =
        u64::from(rig.config.duplicates.horizon_offsets.min(rig.config.duplicates.max_ids.get()));
    let messages = rig.size(1_000_000, 100_000).min(horizon).saturating_sub(AGAIN);
    let with_ids = restart(rig, "rebuild-ids", messages, "--ids").await?;
    let without = restart(rig, "rebuild-none", messages, "").await?;
    let sound = with_ids.counted == messages && without.counted == messages + AGAIN;
    let name = format!("{} single increments with ids, 1 partition", HumanCount(messages));
    Ok(vec![
        Figure::new(NAME, name, with_ids.first_commit_s, Unit::Seconds)
            .beside("the same without ids", without.first_commit_s)
            .peak_bytes(with_ids.peak_bytes)
            .detail("memory without ids", HumanCount(without.peak_bytes).to_string())
            .detail("counted", format!("{} (without ids: {})", with_ids.counted, without.counted))
            .sound(sound),
    ])
}

async fn restart(rig: &Rig, name: &str, messages: u64, ids: &str) -> anyhow::Result<Restart> {
    let case = Case::with(rig, name, 1, |config| config.kafka.partitions = 1).await?;
    let sent = case.load(&format!("--batch 0 --count {messages} {ids}")).await?;
    let aggregator = case.start("aggregator")?;
    case.aggregated(&aggregator, sent.messages).await?;
    case.stop("aggregator").await?;

    let again = case.load(&format!("--batch 0 --count {AGAIN} {ids}")).await?;
    let aggregator = case.start("aggregator")?;
    let meter = Meter::start([aggregator.clone()])?;
    let drained = case.aggregated(&aggregator, sent.messages + again.messages).await?;
    let used = meter.read()?;
    case.stop("aggregator").await?;
    let counted = tokio::task::block_in_place(|| case.log.deltas())?.increments;
    let (first, _) = drained.times();
    Ok(Restart { first_commit_s: first.as_secs_f64(), peak_bytes: used[0].peak_bytes, counted })
}
