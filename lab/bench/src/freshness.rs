//! From acknowledged to readable, under load: single increments, read with `after`.
//!
//! Counters that are read again and again are in the reader's memory, and tell how long it takes an
//! increment to get there. A counter that was never read before is asked of the store on top of it.
//!
//! ```text
//!  tally load ──► increments ──► … all services
//!  probe ──acks──►│                                 reader
//!    └── from here ──► GET /v1/counters/…?after= ──► an answer that includes it
//! ```

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use indicatif::HumanCount;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use serde::Deserialize;
use tally_counts::next_offset;
use tally_platform::registry::Registry;
use tally_schemas::{Increment, avsc, encode, wire};
use tokio::task::JoinSet;

use super::figures::{Figure, Unit};
use super::rig::{Case, Rig};
use super::trial::{start_all, stop_all};

const NAME: &str = "freshness";
const INTERVAL: Duration = Duration::from_millis(100);
/// How many counters take turns: each has been read by the time that its turn comes again.
const COUNTERS: u64 = 50;
/// One probe in so many is of a new counter.
const NEW_EVERY: u64 = 5;
/// Half of what is asked of the live bench, where its highest rate is not known.
const DEFAULT_RATE: u64 = 500_000;
const NAMESPACE: &str = "probe";
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct CounterValue {
    value: i64,
}

#[derive(Clone)]
struct Prober {
    producer: FutureProducer,
    http: reqwest::Client,
    topic: String,
    reader: String,
    schema_id: u32,
}

pub(super) async fn run(rig: &Rig, highest: Option<f64>) -> anyhow::Result<Vec<Figure>> {
    let rate = highest.map_or(DEFAULT_RATE, |highest| highest as u64 / 2).max(1);
    let (seconds, quiet): (u64, u64) = rig.size((60, 20), (10, 5));
    let case = Case::new(rig, NAME).await?;
    start_all(&case).await?;
    let prober = Prober::new(&case).await?;
    let quiet = Instant::now() + Duration::from_secs(quiet);
    let idle = prober.probe_while("idle", || Ok(Instant::now() < quiet)).await?;
    let mut load = case.start_load(&format!("--rate {rate} --seconds {seconds}"))?;
    let loaded = prober.probe_while("loaded", || Ok(!load.has_ended()?)).await?;
    let sent = load.finish().await?;
    case.until_stored(PATIENCE).await?;
    stop_all(&case).await?;

    let right = idle.right && loaded.right;
    let figure = |name: &str, percent, of: fn(&Latencies) -> &[f64]| {
        Figure::new(
            NAME,
            format!("{name} at {}/s", HumanCount(rate)),
            percentile(of(&loaded), percent),
            Unit::Milliseconds,
        )
        .beside("without load", percentile(of(&idle), percent))
        .sound(right)
    };
    Ok(vec![
        figure("p50", 50, |seen| &seen.again),
        figure("p99", 99, |seen| &seen.again)
            .detail(
                "probes",
                format!(
                    "{} of {COUNTERS} counters, one each {} ms",
                    loaded.again.len(),
                    INTERVAL.as_millis()
                ),
            )
            .detail("flush interval", format!("{} ms", case.config.aggregator.flush_interval_ms))
            .detail("load", format!("{} incr/s", HumanCount(sent.sent_per_second() as u64))),
        figure("p99, new counters", 99, |seen| &seen.new)
            .detail("probes", format!("{}, each of a counter of its own", loaded.new.len())),
    ])
}

/// How long probes took, in milliseconds, sorted, and whether each was read as it was sent.
#[derive(Default)]
struct Latencies {
    again: Vec<f64>,
    new: Vec<f64>,
    right: bool,
}

/// A percentile by nearest rank; 0 if there is no value.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    rank.checked_sub(1).and_then(|at| sorted.get(at)).copied().unwrap_or(0.0)
}

/// The increment that a tick sends: its counter, and that counter's value with it.
struct Probe {
    key: String,
    value: i64,
    is_new: bool,
}

impl Probe {
    fn of(name: &str, tick: u64) -> Probe {
        if tick % NEW_EVERY == NEW_EVERY - 1 {
            return Probe { key: format!("{name}-new-{tick}"), value: 1, is_new: true };
        }
        let again = tick / NEW_EVERY * (NEW_EVERY - 1) + tick % NEW_EVERY;
        let (round, counter) = (again / COUNTERS, again % COUNTERS);
        // The first round is of counters that nobody has read yet.
        Probe {
            key: format!("{name}-{counter}"),
            value: round.cast_signed() + 1,
            is_new: round == 0,
        }
    }
}

impl Prober {
    async fn new(case: &Case<'_>) -> anyhow::Result<Prober> {
        let subject = format!("{}-value", case.config.kafka.increments);
        Ok(Prober {
            producer: tally_kafka::producer(&case.config.kafka.cluster(), "tally-bench")
                .set("linger.ms", "0")
                .create()?,
            http: reqwest::Client::builder().no_proxy().build()?,
            topic: case.config.kafka.increments.clone(),
            reader: format!("http://{}/v1/counters/{NAMESPACE}", case.config.reader.listen),
            schema_id: Registry::new(&case.config.registry)?
                .register(&subject, avsc::INCREMENT)
                .await?,
        })
    }

    /// Sends probes for as long as `go_on` says, and waits until each was read.
    async fn probe_while(
        &self,
        name: &str,
        mut go_on: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Latencies> {
        let mut probes = JoinSet::new();
        let mut ticks = tokio::time::interval(INTERVAL);
        for tick in 0.. {
            if !go_on()? {
                break;
            }
            ticks.tick().await;
            let (prober, probe) = (self.clone(), Probe::of(name, tick));
            probes.spawn(async move { anyhow::Ok((prober.send(&probe.key).await?, probe)) });
        }
        let mut seen = Latencies { right: true, ..Latencies::default() };
        while let Some(outcome) = probes.join_next().await {
            let ((took, value), probe) = outcome??;
            let millis = took.as_secs_f64() * 1000.0;
            if probe.is_new {
                seen.new.push(millis)
            } else {
                seen.again.push(millis)
            }
            seen.right &= value == probe.value;
        }
        seen.again.sort_by(f64::total_cmp);
        seen.new.sort_by(f64::total_cmp);
        Ok(seen)
    }

    /// How long one increment took from its acknowledgement to an answer that includes it, and that
    /// answer.
    async fn send(&self, key: &str) -> anyhow::Result<(Duration, i64)> {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
        let mut message = wire::prefix(self.schema_id).to_vec();
        encode::increment(
            &mut message,
            &Increment { namespace: NAMESPACE, key, delta: 1, at_ms, id: None },
        );
        let record = FutureRecord::to(&self.topic).key(key).payload(&message);
        let stored =
            self.producer.send(record, Timeout::Never).await.map_err(|(error, _)| error)?;
        let acknowledged = Instant::now();
        let offset = tally_kafka::appended_at(stored.offset).context("no broker told an offset")?;
        let after = format!("{}:{}", stored.partition, next_offset(offset));
        let request = self.http.get(format!("{}/{key}?after={after}", self.reader));
        let CounterValue { value } = tally_load::answer("the reader", request).await?;
        Ok((acknowledged.elapsed(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_so_many_do_not_exceed() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        let percentiles = [50, 99, 100].map(|percent| percentile(&sorted, percent));
        assert_eq!(percentiles, [100.0, 198.0, 200.0]);
    }

    #[test]
    fn a_counter_is_worth_its_probes_so_far() {
        let mut sent = std::collections::BTreeMap::new();
        let mut new = 0;
        for tick in 0..1000 {
            let probe = Probe::of("x", tick);
            let times: &mut i64 = sent.entry(probe.key).or_default();
            *times += 1;
            assert_eq!((probe.value, probe.is_new), (*times, *times == 1));
            new += i32::from(probe.is_new);
        }
        assert_eq!(new, 200 + 50);
    }
}
