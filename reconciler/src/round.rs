//! One round of verifying: every partition is replayed up to the ledger's position, and compared.
//!
//! ```text
//!  a partition begins at      compared under         afterwards
//!  its first message          a salt that is drawn   forgotten, or kept for the next round (watch)
//!  a checkpoint               the key's own salt     likewise
//!  where the last round ended the same salt          likewise
//! ```

mod asking;
mod comparing;
mod replaying;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tally_counts::{KeyedFingerprint, QuickFingerprint, Salt};
use tally_platform::checkpoint_key::CheckpointKey;
use tally_platform::config::Config;
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::registry::Registry;
use tally_platform::store::PartCounts;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{Checkpoint, Expected};
use crate::checkpoint_topic::{self, Checkpoints};
use crate::coverage::Coverage;
use crate::partition_reader::PartitionReaders;
use crate::rejections::RejectedTopic;
use crate::replay::{Replay, ReplayTotals};
use crate::report::{CheckpointUse, Finding, Findings};
use crate::{Error, PartitionReport, Report, Verdict, VerifyOptions};

use turns::Turns;

/// Rounds of verifying, on threads that may block.
pub(crate) struct Rounds {
    pub(crate) config: Config,
    pub(crate) batches: DeltaBatches,
    registry: Registry,
    pub(crate) options: VerifyOptions,
    pub(crate) runtime: Handle,
    /// Ends a round before its time.
    pub(crate) stop: CancellationToken,
    progress: ProgressBar,
    topic_id: String,
    key: Option<CheckpointKey>,
    /// Of the key, or of none.
    key_salt: Option<Salt>,
    /// For partitions that are replayed from their first message.
    drawn: Salt,
    checkpoints: Checkpoints,
    rejected: RejectedTopic,
    /// Replays that go on in the next round; `None` where each round begins anew.
    kept: Option<BTreeMap<i32, Replay>>,
    /// What ClickHouse's parts came to in the rounds before, where they are kept.
    parts: Option<PartCounts>,
    turns: Turns,
    /// What the partitions whose rows were all read came to, ready to be signed.
    unsigned: BTreeMap<i32, Checkpoint>,
    /// Partitions that did not agree in the last round.
    mismatched: BTreeSet<i32>,
}

/// Where a partition's replay begins.
enum Begin {
    First,
    Checkpoint(Box<Checkpoint>),
    Kept(Box<Replay>),
}

/// What a partition is replayed for.
struct Part {
    /// The first offset that is read, and the one before which reading ends.
    range: (i64, i64),
    begin: Begin,
}

/// One partition's replay, once it is over.
#[derive(Default)]
struct Replayed {
    totals: ReplayTotals,
    fingerprints: Vec<KeyedFingerprint>,
    quick: Option<QuickFingerprint>,
    findings: Findings,
    /// Whether it was replayed up to the ledger's position.
    is_whole: bool,
    unsigned: Option<Checkpoint>,
}

impl Rounds {
    /// Reads the checkpoints. Blocks the thread.
    pub(crate) fn new(
        config: &Config,
        options: &VerifyOptions,
        progress: ProgressBar,
        runtime: &Handle,
        stop: &CancellationToken,
    ) -> Result<Rounds, Error> {
        let kafka = &config.kafka;
        let topic_id = PartitionReaders::new(kafka)?.topic_id(&kafka.increments)?;
        let key = config.reconciler.key_file.as_deref().map(CheckpointKey::read).transpose()?;
        let mut checkpoints = Checkpoints::default();
        // A checkpoint is of all counters of its partition.
        if let Some(key) = key.as_ref().filter(|_| options.scope.has_all_counters()) {
            let expected = Expected { key, topic_id: &topic_id, rules: config.rules() };
            checkpoints = match &options.checkpoints_file {
                _ if options.from_beginning => Checkpoints::default(),
                Some(file) => checkpoint_topic::read_file(file, &expected)?,
                None => checkpoint_topic::read(kafka, &expected)?,
            };
        }
        Ok(Rounds {
            key_salt: key.as_ref().map(|key| key.salt(&topic_id)),
            config: config.clone(),
            batches: DeltaBatches::new(&config.registry, &kafka.deltas)?,
            registry: Registry::new(&config.registry)?,
            options: options.clone(),
            runtime: runtime.clone(),
            stop: stop.clone(),
            progress,
            topic_id,
            key,
            drawn: draw_salt()?,
            checkpoints,
            rejected: RejectedTopic::default(),
            kept: None,
            parts: None,
            turns: Turns::new(
                Duration::from_millis(config.reconciler.checkpoint_interval_ms),
                Instant::now(),
            ),
            unsigned: BTreeMap::new(),
            mismatched: BTreeSet::new(),
        })
    }

    /// Keeps the replays from now on, and compares under one salt: what the next round replays is
    /// added to what this one did.
    pub(crate) fn keep(&mut self) {
        self.kept = Some(BTreeMap::new());
        self.drawn = self.key_salt.unwrap_or(self.drawn);
        self.parts = Some(PartCounts::new(&self.drawn));
    }

    pub(crate) fn key(&self) -> Option<&CheckpointKey> {
        self.key.as_ref()
    }

    /// Verifies once. All rows of a partition are read before anything wrong is said of it.
    pub(crate) fn round(&mut self) -> Result<Report, Error> {
        let chosen = self.turns.choose(Instant::now());
        let mut whole = chosen.map(|chosen| &chosen | &self.mismatched);
        loop {
            let (report, suspects) = self.look(whole.as_ref())?;
            match &mut whole {
                Some(whole) if !suspects.is_empty() => whole.extend(suspects),
                _ => return Ok(report),
            }
        }
    }

    /// Compares all partitions, with all rows of some; returns of which others all rows must be
    /// read before the report can be believed.
    fn look(&mut self, whole: Option<&BTreeSet<i32>>) -> Result<(Report, BTreeSet<i32>), Error> {
        let as_of_ms = jiff::Timestamp::now().as_millisecond();
        let begun = Instant::now();
        let kafka = &self.config.kafka.clone();
        let mut readers = PartitionReaders::new(kafka)?;
        let topic_id = readers.topic_id(&kafka.increments)?;
        if topic_id != self.topic_id {
            return Err(Error::TopicMadeAgain { topic: kafka.increments.clone() });
        }
        let mut stored = self.ask(whole, &mut readers)?;
        let asked = begun.elapsed();
        let count = readers.partition_count(&kafka.increments)?;
        self.rejected.read_on(kafka, &mut readers)?;
        // A partition that only ClickHouse has must not be overlooked.
        let unknown = self.unknown_partitions(count, &readers)?;
        let known: BTreeSet<i32> =
            (0..count).filter(|partition| self.options.scope.has_partition(*partition)).collect();
        let (mut parts, mut ends) = (BTreeMap::new(), BTreeMap::new());
        let mut unreadable = BTreeMap::new();
        for partition in &known {
            // Without rows nothing is stored yet. Where the position contradicts itself, the replay
            // goes as far as the counts ever did.
            let position = stored.entry(*partition).or_default().ledger.increments.high;
            let (begins, end) = match readers.watermarks(&kafka.increments, *partition) {
                Ok(watermarks) => watermarks,
                Err(error) => {
                    let reason = error.to_string();
                    unreadable.insert(*partition, Finding::Unreadable { reason });
                    continue;
                }
            };
            ends.insert(*partition, end);
            match self.begin(*partition, position, (begins, end)) {
                Ok(part) => {
                    parts.insert(*partition, part);
                }
                Err(finding) => {
                    unreadable.insert(*partition, *finding);
                }
            }
        }
        let used: BTreeMap<i32, (i64, Option<CheckpointUse>)> = parts
            .iter()
            .map(|(partition, part)| (*partition, self.told(*partition, part)))
            .collect();
        let length: i64 = parts.values().map(|Part { range: (from, to), .. }| to - from).sum();
        self.progress.set_length(length.cast_unsigned());
        let prepared = begun.elapsed();
        let mut replayed = self.replay_all(parts)?;
        let replaying = begun.elapsed() - prepared;
        tracing::debug!(
            asked = ?asked,
            rejections = ?(prepared - asked),
            replay = ?replaying,
            offsets = length,
            "what a round took"
        );
        let coverage = Coverage {
            config: &self.config,
            batches: &self.batches,
            runtime: &self.runtime,
            allowed: self.options.max_lag.unwrap_or(self.config.aggregator.flush_interval() * 10),
            as_of_ms,
        };
        let of_deltas = |partition: &i32| (*partition, stored[partition].ledger.deltas.high);
        let mut tails = coverage.tails(&ends.keys().map(of_deltas).collect(), &mut readers)?;
        let (mut partitions, mut suspects) = (Vec::new(), BTreeSet::new());
        self.unsigned.clear();
        for partition in known {
            let mut outcome = replayed.remove(&partition).unwrap_or_default();
            let stored = &stored[&partition];
            let findings = &mut outcome.findings;
            Coverage::check_ledger(&stored.ledger, findings);
            match unreadable.remove(&partition) {
                Some(finding) => findings.add(finding),
                None if outcome.is_whole => {
                    let agrees = self.compare(partition, stored, &mut outcome);
                    let kept = self.kept.as_mut().and_then(|kept| kept.get_mut(&partition));
                    if let Some(replay) = kept.filter(|_| agrees && stored.whole.is_some()) {
                        replay.begin_quick(&self.drawn, stored.quick);
                    }
                }
                None => {}
            }
            let Replayed { totals, mut findings, unsigned, .. } = outcome;
            // A partition that Kafka does not have has no end, and no batches.
            let end = ends.get(&partition).copied().unwrap_or(0);
            if let Some(tail) = tails.remove(&partition)
                && let Err(error) = tail.and_then(|tail| {
                    let ledger = &stored.ledger;
                    coverage.check(partition, ledger, end, &tail, &mut readers, &mut findings)
                })
            {
                findings.add(Finding::Unreadable { reason: error.to_string() });
            }
            if let Some(unsigned) = unsigned.filter(|_| stored.whole.is_some()) {
                let deltas = stored.ledger.deltas.high;
                self.unsigned.insert(partition, Checkpoint { deltas, ..unsigned });
            }
            if stored.whole.is_some() {
                self.turns.read(partition, begun);
            } else if findings.verdict() == Verdict::Mismatch {
                suspects.insert(partition);
            }
            let (replayed_from, checkpoint) = used.get(&partition).cloned().unwrap_or((0, None));
            partitions.push(PartitionReport {
                partition: partition.into(),
                verdict: findings.verdict(),
                position: stored.ledger.increments.high,
                end,
                replayed_from,
                checkpoint,
                through_ms: totals.last_ms,
                messages: totals.messages,
                counted: totals.counted,
                duplicate: totals.duplicate,
                rejected: totals.rejected.values().sum(),
                rejected_by_reason: totals.rejected,
                increments: totals.increments,
                compared_events: totals.events,
                findings: findings.kept,
                more_findings: findings.more,
            });
        }
        self.limit_rejected(&mut partitions);
        partitions.extend(unknown);
        let verdict = partitions.iter().map(|p| p.verdict).max().unwrap_or(Verdict::NotProven);
        let mismatched = partitions.iter().filter(|p| p.verdict == Verdict::Mismatch);
        let mismatched = mismatched.filter_map(PartitionReport::in_kafka);
        self.mismatched = mismatched.filter(|partition| !suspects.contains(partition)).collect();
        let replay_seconds = replaying.as_secs_f64();
        Ok((Report { verdict, partitions, replay_seconds, notes: Vec::new() }, suspects))
    }

    /// Where the replay of a partition begins, that Kafka has from the first of these offsets up to
    /// the second.
    fn begin(
        &mut self,
        partition: i32,
        position: i64,
        (begins, end): (i64, i64),
    ) -> Result<Part, Box<Finding>> {
        if position > end {
            let reason = format!(
                "the ledger is at offset {position}, but Kafka ends at {end}: has the topic been \
                 made again?"
            );
            return Err(Finding::Unreadable { reason }.into());
        }
        let kept = self.kept.as_mut().and_then(|kept| kept.remove(&partition));
        let (from, begin) = match (kept, self.checkpoints.newest.get(&partition)) {
            (Some(replay), _) if replay.next() > position => {
                let reached = replay.next();
                self.kept.get_or_insert_default().insert(partition, replay);
                return Err(Finding::WentBack { position, reached }.into());
            }
            (Some(replay), _) => (replay.next(), Begin::Kept(Box::new(replay))),
            (None, Some(checkpoint)) if checkpoint.position == position => {
                (position, Begin::Checkpoint(Box::new(checkpoint.clone())))
            }
            (None, Some(checkpoint)) => {
                (checkpoint.needs_from, Begin::Checkpoint(Box::new(checkpoint.clone())))
            }
            (None, None) => (0, Begin::First),
        };
        // Even where nothing is to be replayed: what is gone was never counted.
        if begins > from {
            let by_checkpoint = matches!(begin, Begin::Checkpoint(_));
            return Err(Finding::LogBegins { begins, needed: from, by_checkpoint }.into());
        }
        Ok(Part { range: (from, position), begin })
    }

    /// What the report says of where a replay begins.
    fn told(&self, partition: i32, part: &Part) -> (i64, Option<CheckpointUse>) {
        let checkpoint = self.checkpoints.newest.get(&partition);
        let used = match (&part.begin, checkpoint, &self.key) {
            (Begin::First, ..) | (_, None, _) | (.., None) => None,
            (_, Some(checkpoint), Some(key)) => Some(CheckpointUse {
                position: checkpoint.position,
                signed_ms: checkpoint.signed_ms,
                key: key.public(),
            }),
        };
        (part.range.0, used)
    }

    /// The salt that a partition is compared under.
    fn salt_of(&self, partition: i32) -> &Salt {
        let has_checkpoint = self.checkpoints.newest.contains_key(&partition);
        self.key_salt.as_ref().filter(|_| has_checkpoint).unwrap_or(&self.drawn)
    }

    /// Checkpoints of the partitions that agree and are further than the ones before.
    pub(crate) fn signable(&self, report: &Report) -> Vec<Checkpoint> {
        let agree = report.partitions.iter().filter(|p| p.verdict == Verdict::Agrees);
        let signed_ms = jiff::Timestamp::now().as_millisecond();
        agree
            .filter_map(|p| self.unsigned.get(&p.in_kafka()?))
            .filter(|unsigned| {
                let before = self.checkpoints.newest.get(&unsigned.partition);
                unsigned.position > before.map_or(0, |before| before.position)
            })
            .map(|unsigned| Checkpoint { signed_ms, ..unsigned.clone() })
            .collect()
    }

    /// Remembers what was signed, to sign no older ones.
    pub(crate) fn note_signed(&mut self, signed: Vec<Checkpoint>) {
        let signed = signed.into_iter().map(|checkpoint| (checkpoint.partition, checkpoint));
        self.checkpoints.newest.extend(signed);
    }

    /// What contradicts nothing, but matters to who reads the report.
    pub(crate) fn notes(&self, report: &Report) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(scope) = self.options.scope.told() {
            let events: i128 = report.partitions.iter().map(|p| p.compared_events).sum();
            notes.push(format!("compared were only counters of {scope}: {events} increments"));
        }
        let used = report.partitions.iter().filter_map(|p| p.checkpoint.as_ref());
        if let Some(oldest) = used.clone().min_by_key(|used| used.signed_ms) {
            let at = jiff::Timestamp::from_millisecond(oldest.signed_ms).unwrap_or_default();
            notes.push(format!(
                "{} partitions are proven by checkpoints of key {} (the oldest of {at}), and by \
                 the messages behind them; --from-beginning replays every message",
                used.count(),
                oldest.key,
            ));
        }
        let Checkpoints { refused, first_refused, .. } = &self.checkpoints;
        if let Some(first) = first_refused {
            notes.push(format!("{refused} checkpoints were refused; the first: {first}"));
        }
        if let Some(first) = &self.rejected.first_strange {
            notes.push(format!(
                "{} messages among the rejected are none of an aggregator's, and were passed \
                 over; the first: {first}",
                self.rejected.strange
            ));
        }
        notes
    }
}

fn draw_salt() -> Result<Salt, Error> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(Salt::from_bytes(bytes))
}
