//! Verifies for ever: what comes after the last round is added to what was replayed before, and of
//! ClickHouse's parts only new ones are read. By turns, and before anything wrong is said of it,
//! all of a partition is read.
//!
//! ```text
//!  ┌► round: replay what is new, compare all ─► metrics, log, readiness, ─► now and then,
//!  │                                            how far it is proven        checkpoints ─┐
//!  └──────────────────── reconciler.watch_interval_ms ◄──────────────────────────────────┘
//! ```

mod backlog;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rdkafka::consumer::BaseConsumer;
use tally_platform::config::Config;
use tally_platform::health::{Condition, Health};
use tally_platform::quiet_log::QuietLog;
use tally_platform::store::SupportError;
use tally_platform::verified::{self, Note, Verified};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::backlog::Backlog;
use crate::checkpoint_topic;
use crate::metrics::Metrics;
use crate::round::Rounds;
use crate::verify::{blocking, check_rules};
use crate::{Error, PartitionReport, Report, Verdict, VerifyOptions};

const CLIENT_ID: &str = "tally-watch";
/// What ClickHouse lacks for longer is not proven; until then it is lag.
const MAX_LAG: Duration = Duration::from_secs(60);
/// A round that takes longer is said to be stuck.
const MAX_SILENCE: Duration = Duration::from_secs(3600);

/// Runs until `shutdown`; an error where no round will ever succeed.
pub async fn watch(
    config: &Config,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    tally_kafka::give_large_buffers_back();
    let interval = Duration::from_millis(config.reconciler.watch_interval_ms);
    let group = verified::group(&config.kafka.increments);
    let publisher = tally_kafka::consumer(&config.kafka.cluster(), CLIENT_ID, &group)
        .create()
        .map_err(Error::kafka("make a consumer"))?;
    let mut watch = Watch {
        works: health.condition("verifying"),
        agrees: health.condition("counts"),
        metrics: Metrics::new(),
        backlog: Backlog::new(),
        publisher: Arc::new(publisher),
        publishing: QuietLog::once(),
        verdicts: BTreeMap::new(),
    };
    let heartbeat = health.heartbeat("rounds", MAX_SILENCE);
    let mut rounds = None;
    loop {
        heartbeat.beat();
        let begun = Instant::now();
        let ended = tokio::select! {
            ended = watch.round(config, rounds.take(), &shutdown) => ended,
            () = shutdown.cancelled() => return Ok(()),
        };
        match ended {
            Ok(next) => {
                rounds = Some(next);
                watch.works.set(true, "");
            }
            Err(
                error @ (Error::TopicMadeAgain { .. }
                | Error::OtherRules { .. }
                | Error::OtherFormat { .. }
                | Error::Support(SupportError::Unsupported(_))
                | Error::Key(_)),
            ) => return Err(error),
            Err(error) => {
                watch.metrics.failed();
                watch.works.set(false, error.to_string());
                tracing::warn!(
                    %error,
                    "a round of verifying failed; the next one begins at the checkpoints, or at \
                     the first message"
                );
            }
        }
        // A round that takes long is followed soon, but leaves the servers some time.
        let took = begun.elapsed();
        let pause = interval.saturating_sub(took).max(took / 4);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

struct Watch {
    /// Whether the last round could be made.
    works: Condition,
    /// Whether no partition contradicts.
    agrees: Condition,
    metrics: Metrics,
    backlog: Backlog,
    /// Of the group whose offsets say how far the counts are proven.
    publisher: Arc<BaseConsumer>,
    publishing: QuietLog,
    /// Of each partition, in the last round.
    verdicts: BTreeMap<i64, Verdict>,
}

impl Watch {
    async fn round(
        &mut self,
        config: &Config,
        rounds: Option<Rounds>,
        stop: &CancellationToken,
    ) -> Result<Rounds, Error> {
        let mut rounds = match rounds {
            Some(rounds) => rounds,
            None => {
                check_rules(config).await?;
                let (config, runtime, stop) = (config.clone(), Handle::current(), stop.clone());
                blocking(move || {
                    let options =
                        VerifyOptions { max_lag: Some(MAX_LAG), ..VerifyOptions::default() };
                    let progress = ProgressBar::hidden();
                    let mut rounds = Rounds::new(&config, &options, progress, &runtime, &stop)?;
                    rounds.keep();
                    Ok(rounds)
                })
                .await?
            }
        };
        let begun = Instant::now();
        let (mut rounds, report) = blocking(move || {
            let report = rounds.round()?;
            Ok((rounds, report))
        })
        .await?;
        self.metrics.ended(&report, begun.elapsed());
        self.backlog.tell(config, &report).await;
        self.tell(&report);
        self.publish(config, &report).await;
        if let Some(key) = rounds.key().cloned() {
            let signed = rounds.signable(&report);
            if !signed.is_empty() {
                checkpoint_topic::append(&config.kafka, &key, &signed).await?;
                rounds.note_signed(signed);
            }
        }
        Ok(rounds)
    }

    /// Keeps in Kafka how far the counts are proven.
    async fn publish(&mut self, config: &Config, report: &Report) {
        let at_ms = jiff::Timestamp::now().as_millisecond();
        let said = report.partitions.iter().filter_map(|p| {
            let agrees = p.verdict != Verdict::Mismatch;
            // What can be neither proven nor contradicted leaves what was said before.
            let through = match (agrees, p.is_proven_so_far()) {
                (true, true) => p.position,
                (true, false) => return None,
                (false, _) => 0,
            };
            let note = Note { agrees, at_ms, through_ms: p.through_ms.filter(|_| agrees) };
            Some((p.in_kafka()?, Verified { through, note }))
        });
        let (said, publisher): (BTreeMap<_, _>, _) = (said.collect(), Arc::clone(&self.publisher));
        let increments = config.kafka.increments.clone();
        let publish = move || verified::publish(&publisher, &increments, &said);
        let published = tokio::task::spawn_blocking(publish).await.expect("it does not panic");
        match published {
            Ok(()) => {
                if let Some(failures) = self.publishing.succeeded() {
                    tracing::info!(failures, "Kafka keeps again how far the counts are proven");
                }
            }
            Err(error) => {
                if self.publishing.failed(Instant::now()).is_some() {
                    tracing::warn!(
                        %error,
                        "Kafka does not keep how far the counts are proven; the next round tries \
                         again"
                    );
                }
            }
        }
    }

    /// Says what has changed since the last round.
    fn tell(&mut self, report: &Report) {
        let is_there = |partition: i64| report.partitions.iter().any(|p| p.partition == partition);
        for (partition, _) in self.verdicts.extract_if(.., |partition, _| !is_there(*partition)) {
            tracing::info!(partition, "ClickHouse has no rows of the partition any more");
            self.metrics.gone(partition);
        }
        for p in &report.partitions {
            let before = self.verdicts.insert(p.partition, p.verdict);
            if before.unwrap_or(Verdict::Agrees) != p.verdict {
                self.tell_of(p);
            }
        }
        let wrong = report.partitions.iter().filter(|p| p.verdict == Verdict::Mismatch);
        let wrong: Vec<String> = wrong.map(|p| p.partition.to_string()).collect();
        self.agrees.set(
            wrong.is_empty(),
            format!("ClickHouse does not agree with Kafka in partitions {}", wrong.join(", ")),
        );
    }

    fn tell_of(&self, p: &PartitionReport) {
        let &PartitionReport { partition, position, .. } = p;
        if p.verdict == Verdict::Agrees {
            tracing::info!(partition, position, "the partition agrees with Kafka again");
            return;
        }
        for finding in &p.findings {
            if p.verdict == Verdict::Mismatch {
                tracing::error!(partition, position, %finding, "the counts are not Kafka's");
            } else {
                tracing::warn!(partition, position, %finding, "the counts are not proven");
            }
        }
    }
}
