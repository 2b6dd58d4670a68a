//! Everything at once: the load, the log, all services and the store on this machine, at a fixed
//! rate and at the highest that is sustained.
//!
//! ```text
//!  tally load --rate ──► increments ──► aggregator ──► deltas ──► sink ──► counts
//!        each second:      ends                                  ledger: how far behind?
//!        then: verify
//! ```

use indicatif::HumanCount;

use super::figures::{Figure, Unit};
use super::measure::{Usage, shares};
use super::rig::{Case, Rig};
use super::trial::{Trial, start_all, stop_all};
use tally_load::Summary;

const NAME: &str = "live";
const HIGHEST: &str = "live, highest";

/// What a load is, and the rate that it is asked for.
struct LoadShape {
    name: &'static str,
    topic: &'static str,
    batch: u64,
    rate: u64,
}

const LOADS: [LoadShape; 2] = [
    LoadShape { name: "batches of 500", topic: "live-batches", batch: 500, rate: 1_000_000 },
    LoadShape { name: "singles", topic: "live-singles", batch: 0, rate: 500_000 },
];

/// The figures, and the highest sustained rate of batches.
pub(super) async fn run(rig: &Rig) -> anyhow::Result<(Vec<Figure>, Option<f64>)> {
    let mut figures = Vec::new();
    let mut highest_of_batches = None;
    for load in &LOADS {
        let (fixed, highest, rate) = under_load(rig, load).await?;
        figures.extend([fixed, highest]);
        if load.batch > 0 {
            highest_of_batches = rate;
        }
    }
    Ok((figures, highest_of_batches))
}

async fn under_load(rig: &Rig, load: &LoadShape) -> anyhow::Result<(Figure, Figure, Option<f64>)> {
    let case = Case::new(rig, load.topic).await?;
    let all = start_all(&case).await?;
    let fixed = Trial::run(&case, &all, Some(load.rate), load.batch, rig.size(60, 12)).await?;
    let mut sent = vec![fixed.sent.clone()];
    let seconds = rig.size(20, 8);
    let free = Trial::run(&case, &all, None, load.batch, seconds).await?;
    sent.push(free.sent.clone());
    let mut search =
        Search { low: free.stored_per_second() / 2.0, high: free.sent.per_second(), best: None };
    let mut trials = Vec::new();
    for _ in 0..rig.size(6, 3) {
        let rate = search.next();
        let trial = Trial::run(&case, &all, Some(rate as u64), load.batch, seconds).await?;
        let (middle, last) = trial.lag_seconds();
        trials.push(format!(
            "{}/s {}, {middle:.1} s then {last:.1} s behind ({:.1} s to the aggregator)",
            HumanCount(rate as u64),
            if trial.is_sustained() { "sustained" } else { "not sustained" },
            trial.unread_seconds()
        ));
        sent.push(trial.sent.clone());
        search.note(rate, trial.is_sustained());
    }
    stop_all(&case).await?;
    let wrong = case.verify(&sent).await?.err();

    let increments = fixed.increments_seen();
    let (middle, last) = fixed.lag_seconds();
    let name = format!("{}, {}/s", load.name, HumanCount(load.rate));
    let figure = Figure::new(NAME, name, fixed.sent.sent_per_second(), Unit::IncrementsPerSecond)
        .beside("the rate asked for", load.rate as f64)
        .cpu_us(fixed.used.iter().map(|used| used.micros_each(increments)).sum())
        .peak_bytes(fixed.used.iter().map(|used| used.peak_bytes).sum())
        .detail("for", format!("{:.0} s", fixed.sent.seconds))
        .detail(
            "behind",
            format!(
                "{middle:.1} s, then {last:.1} s ({:.1} s to the aggregator): {}",
                fixed.unread_seconds(),
                if fixed.is_flat() { "flat" } else { "GROWS" }
            ),
        )
        .detail("the rest stored after", format!("{:.1} s", fixed.rest.as_secs_f64()))
        .detail("CPU", shares(&fixed.used, increments))
        .detail("memory", memory(&fixed.used))
        .detail("verify", verdict(&sent, wrong.as_deref()))
        .sound(wrong.is_none());
    let highest =
        Figure::new(HIGHEST, load.name, search.best.unwrap_or(0.0), Unit::IncrementsPerSecond)
            .beside("the load alone decides", free.sent.per_second())
            .detail(
                "stored meanwhile",
                format!("{} incr/s", HumanCount(free.stored_per_second() as u64)),
            )
            .detail("tried, each for", format!("{seconds} s"))
            .detail("of them", trials.join("; "))
            .sound(wrong.is_none());
    Ok((figure, highest, search.best))
}

fn memory(used: &[Usage]) -> String {
    let one = |used: &Usage| format!("{} {} MiB", used.name, used.peak_bytes >> 20);
    used.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn verdict(sent: &[Summary], wrong: Option<&str>) -> String {
    let increments: u64 = sent.iter().map(|sent| sent.increments).sum();
    match wrong {
        None => {
            format!("clean, {} increments, the trials below among them", HumanCount(increments))
        }
        Some(wrong) => wrong.to_owned(),
    }
}

/// The highest rate that is sustained: between half of what was stored while the load took all it
/// could, and that load's rate, halving what is left. Half, since a lag that grows makes flushes
/// larger, and what is stored cheaper, than at a rate that is sustained.
struct Search {
    low: f64,
    high: f64,
    best: Option<f64>,
}

impl Search {
    fn next(&self) -> f64 {
        ((self.low + self.high) / 2.0).max(1.0)
    }

    fn note(&mut self, rate: f64, sustained: bool) {
        if sustained {
            self.low = rate;
            self.best = Some(rate);
        } else {
            self.high = rate;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_comes_close_to_the_rate_that_is_just_sustained() {
        let mut search = Search { low: 100.0, high: 200.0, best: None };
        for _ in 0..8 {
            let rate = search.next();
            search.note(rate, rate <= 130.0);
        }
        let best = search.best.unwrap();
        assert!(best <= 130.0 && best > 129.0, "{best}");
    }
}
