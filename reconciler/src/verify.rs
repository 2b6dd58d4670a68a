use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use indicatif::ProgressBar;
use rdkafka::Message;
use rdkafka::consumer::Consumer;
use tally_counts::{KeyedFingerprint, Reject, Salt};
use tally_platform::config::Config;
use tally_platform::plans::Plans;
use tally_platform::registry::Registry;
use tally_platform::store::{self, StoredCounts, TableRules};
use tally_schemas::{DeltaBatch, wire};
use tokio::runtime::Handle;

use crate::log_reader::{LogReader, Read};
use crate::narrow::narrow;
use crate::partition_reader::{PartitionReader, kafka_client};
use crate::rejections::{RejectedTopic, Rejections, read_rejected_topic};
use crate::replay::{Decoder, Replay, ReplayTotals};
use crate::report::{Finding, Findings};
use crate::scope::Scope;
use crate::{Error, PartitionReport, Report, Verdict};

/// All replays together hold so much of sums, in bytes; one holds at least and at most so much.
const FOLDS_BYTES: usize = 256 << 20;
const LEAST_FOLD_BYTES: usize = 1 << 20;
const MOST_FOLD_BYTES: usize = 32 << 20;
/// How many partitions a thread replays side by side.
const AT_ONCE: usize = 8;
/// How many messages are replayed between two steps of the progress bar.
const STEP: u64 = 4096;

/// What is verified, and what is allowed.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    pub scope: Scope,
    /// How old a committed batch may be that ClickHouse lacks; ten flush intervals when absent.
    pub max_lag: Option<Duration>,
    /// How many messages may have been rejected for reasons that the gateway refuses; any number
    /// when absent.
    pub max_rejected: Option<u64>,
}

/// Verifies every partition as of the ledger's position: what is in Kafka but not in ClickHouse yet
/// is lag, not a mismatch. It writes nothing.
///
/// `progress` counts offsets.
pub async fn verify(
    config: &Config,
    options: &VerifyOptions,
    progress: &ProgressBar,
) -> Result<Report, Error> {
    let client = store::client(&config.store);
    let (have, want) = (store::rules(&client).await?, config.rules());
    match have {
        None => return Err(Error::NoTable),
        Some(TableRules { format, .. }) if format != TableRules::FORMAT => {
            return Err(Error::OtherFormat { have: format, want: TableRules::FORMAT });
        }
        Some(TableRules { rules, .. }) if rules != want => {
            return Err(Error::OtherRules { have: rules, want });
        }
        Some(_) => {}
    }
    let salt = draw_salt()?;
    let as_of_ms = jiff::Timestamp::now().as_millisecond();
    let stored = store::stored_counts(&client, &salt, &options.scope.sql()).await?;
    let run = Run {
        config: config.clone(),
        options: options.clone(),
        salt,
        as_of_ms,
        stored,
        progress: progress.clone(),
        runtime: Handle::current(),
    };
    tokio::task::spawn_blocking(move || run.verify())
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn draw_salt() -> Result<Salt, Error> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(Salt::from_bytes(bytes))
}

/// One verify, on threads that may block.
pub(crate) struct Run {
    pub(crate) config: Config,
    pub(crate) options: VerifyOptions,
    pub(crate) salt: Salt,
    /// The time before ClickHouse was asked, in milliseconds since 1970: what is older and not
    /// there was late then.
    as_of_ms: i64,
    pub(crate) stored: BTreeMap<i32, StoredCounts>,
    progress: ProgressBar,
    pub(crate) runtime: Handle,
}

/// One partition's replay, once it is over.
struct Replayed {
    totals: ReplayTotals,
    findings: Findings,
    /// Whether it was replayed up to the ledger's position.
    is_whole: bool,
}

impl Run {
    fn verify(mut self) -> Result<Report, Error> {
        let kafka = &self.config.kafka;
        let client = kafka_client(kafka)?;
        let count = tally_kafka::partition_count(client.client(), &kafka.increments)?;
        let rejected = read_rejected_topic(kafka)?;
        // A partition that only the ledger has is no longer in Kafka: it must not be overlooked.
        let known: BTreeSet<i32> = (0..count)
            .chain(self.stored.keys().copied())
            .filter(|partition| self.options.scope.has_partition(*partition))
            .collect();
        for partition in &known {
            // Without rows nothing is stored yet.
            self.stored.entry(*partition).or_default();
        }
        let (mut ranges, mut ends, mut unreadable) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for partition in &known {
            // Where the position contradicts itself, the replay goes as far as the counts ever did.
            let position = self.stored[partition].ledger.increments.high;
            if *partition >= count {
                unreadable.insert(*partition, Finding::UnknownPartition { partitions: count });
                continue;
            }
            let watermarks =
                tally_kafka::watermarks(client.client(), &kafka.increments, *partition);
            let (begins, end) = match watermarks {
                Ok(watermarks) => watermarks,
                Err(error) => {
                    let reason = error.to_string();
                    unreadable.insert(*partition, Finding::Unreadable { reason });
                    continue;
                }
            };
            ends.insert(*partition, end);
            if begins > 0 {
                unreadable.insert(*partition, Finding::LogBegins { begins });
            } else if position > end {
                let reason = format!(
                    "the ledger is at offset {position}, but Kafka ends at {end}: has the topic \
                     been made again?"
                );
                unreadable.insert(*partition, Finding::Unreadable { reason });
            } else {
                ranges.insert(*partition, (0, position));
            }
        }
        let length: i64 = ranges.values().map(|(from, to)| to - from).sum();
        self.progress.set_length(length.cast_unsigned());
        let mut replayed = self.replay_all(&ranges, &rejected)?;
        let mut partitions = Vec::new();
        for partition in known {
            let Replayed { totals, mut findings, is_whole } =
                replayed.remove(&partition).unwrap_or_else(|| self.nothing_replayed(partition));
            self.check_ledger(partition, &mut findings);
            match unreadable.remove(&partition) {
                Some(finding) => findings.add(finding),
                None if is_whole => self.compare(partition, &totals, &rejected, &mut findings),
                None => {}
            }
            // A partition that Kafka does not have has no end, and no batches.
            let end = ends.get(&partition).copied().unwrap_or(0);
            if ends.contains_key(&partition)
                && let Err(error) = self.check_coverage(partition, end, &mut findings)
            {
                findings.add(Finding::Unreadable { reason: error.to_string() });
            }
            let stored = &self.stored[&partition];
            partitions.push(PartitionReport {
                partition,
                verdict: findings.verdict(),
                position: stored.ledger.increments.high,
                end,
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
        let verdict = partitions.iter().map(|p| p.verdict).max().unwrap_or(Verdict::NotProven);
        let notes = self.notes(rejected, &partitions);
        Ok(Report { verdict, partitions, notes })
    }

    /// Replays these ranges of offsets, side by side on a few threads.
    fn replay_all(
        &self,
        ranges: &BTreeMap<i32, (i64, i64)>,
        rejected: &RejectedTopic,
    ) -> Result<BTreeMap<i32, Replayed>, Error> {
        let threads = self.config.reconciler.parallel.clamp(1, ranges.len().max(1));
        let mut shares = vec![BTreeMap::new(); threads];
        for (at, (partition, range)) in ranges.iter().enumerate() {
            shares[at % threads].insert(*partition, *range);
        }
        let fold_bytes = FOLDS_BYTES / ranges.len().clamp(1, threads * AT_ONCE);
        let fold_bytes = fold_bytes.clamp(LEAST_FOLD_BYTES, MOST_FOLD_BYTES);
        std::thread::scope(|scope| {
            let workers: Vec<_> = shares
                .iter()
                .map(|share| scope.spawn(|| self.replay_share(share, rejected, fold_bytes)))
                .collect();
            let mut replayed = BTreeMap::new();
            for worker in workers {
                let done = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                replayed.append(&mut done?);
            }
            Ok(replayed)
        })
    }

    /// Replays some partitions at a time: each remembers its ids meanwhile.
    fn replay_share(
        &self,
        ranges: &BTreeMap<i32, (i64, i64)>,
        rejected: &RejectedTopic,
        fold_bytes: usize,
    ) -> Result<BTreeMap<i32, Replayed>, Error> {
        let ranges: Vec<_> = ranges.iter().map(|(partition, range)| (*partition, *range)).collect();
        let mut replayed = BTreeMap::new();
        for group in ranges.chunks(AT_ONCE) {
            let group = group.iter().copied().collect();
            replayed.append(&mut self.replay_group(&group, rejected, fold_bytes)?);
        }
        Ok(replayed)
    }

    fn replay_group(
        &self,
        ranges: &BTreeMap<i32, (i64, i64)>,
        rejected: &RejectedTopic,
        fold_bytes: usize,
    ) -> Result<BTreeMap<i32, Replayed>, Error> {
        let none = Rejections::new();
        let mut replays: BTreeMap<i32, Replay<'_>> = BTreeMap::new();
        for partition in ranges.keys() {
            let rejections = rejected.by_partition.get(partition).unwrap_or(&none);
            replays.insert(*partition, self.replay(*partition, rejections, fold_bytes));
        }
        let mut unreadable = BTreeMap::new();
        let mut decoder = self.decoder()?;
        let mut messages = 0_u64;
        LogReader::new(&self.config, ranges, &self.runtime)?.read(|read| {
            match read {
                Read::Message(message) => {
                    let replay = replays.get_mut(&message.partition).expect("it is read");
                    replay.take(&mut decoder, &message)?;
                    messages += 1;
                    if messages.is_multiple_of(STEP) {
                        self.progress.inc(STEP);
                    }
                }
                Read::Unreadable(trouble) => {
                    unreadable.insert(trouble.partition, trouble.reason);
                }
            }
            Ok(())
        })?;
        self.progress.inc(messages % STEP);
        let ended = replays.into_iter().map(|(partition, replay)| {
            let (totals, mut findings) = replay.finish();
            let trouble = unreadable.remove(&partition);
            let is_whole = trouble.is_none();
            if let Some(reason) = trouble {
                findings.add(Finding::Unreadable { reason });
            }
            (partition, Replayed { totals, findings, is_whole })
        });
        Ok(ended.collect())
    }

    pub(crate) fn replay<'a>(
        &'a self,
        partition: i32,
        rejections: &'a Rejections,
        fold_bytes: usize,
    ) -> Replay<'a> {
        let rules = self.config.rules();
        Replay::new(partition, rules, &self.salt, rejections, &self.options.scope, fold_bytes)
    }

    pub(crate) fn decoder(&self) -> Result<Decoder<'_>, Error> {
        Ok(Decoder::new(Plans::new(Registry::new(&self.config.registry)?), &self.runtime))
    }

    fn nothing_replayed(&self, partition: i32) -> Replayed {
        let none = Rejections::new();
        let (totals, findings) = self.replay(partition, &none, LEAST_FOLD_BYTES).finish();
        Replayed { totals, findings, is_whole: false }
    }

    /// Whether the ledger contradicts itself.
    fn check_ledger(&self, partition: i32, findings: &mut Findings) {
        let ledger = &self.stored[&partition].ledger;
        for (name, stored) in [("deltas", ledger.deltas), ("increments", ledger.increments)] {
            if let Err(error) = stored.position() {
                findings.add(Finding::Ledger { reason: format!("position in {name}: {error}") });
            }
        }
    }

    /// Compares what a replay came to with what ClickHouse has.
    fn compare(
        &self,
        partition: i32,
        totals: &ReplayTotals,
        rejected: &RejectedTopic,
        findings: &mut Findings,
    ) {
        let StoredCounts { ledger, fingerprints, events } = &self.stored[&partition];
        let differing: Vec<usize> = (0..KeyedFingerprint::RANGES)
            .filter(|range| fingerprints[*range] != totals.fingerprints[*range])
            .collect();
        if !differing.is_empty() {
            findings.add(Finding::Fingerprint { ranges: differing.len() });
        }
        let rejections: u64 = totals.rejected.values().sum();
        let accounts: [(&str, i128, i128); 6] = [
            ("messages counted", ledger.counted.into(), totals.counted.into()),
            ("messages duplicate", ledger.duplicate.into(), totals.duplicate.into()),
            ("messages rejected", ledger.rejected.into(), rejections.into()),
            ("increments", ledger.counted_increments.into(), totals.increments.into()),
            ("events of the counts", *events, totals.events),
            (
                "messages seen",
                i128::from(ledger.counted)
                    + i128::from(ledger.duplicate)
                    + i128::from(ledger.rejected),
                totals.messages.into(),
            ),
        ];
        for (what, stored, replayed) in accounts {
            if stored != replayed {
                findings.add(Finding::Accounting { what, stored, replayed });
            }
        }
        if !differing.is_empty() {
            let none = Rejections::new();
            let rejections = rejected.by_partition.get(&partition).unwrap_or(&none);
            match narrow(self, partition, &differing, rejections) {
                Ok(counters) => counters.into_iter().for_each(|counter| findings.add(counter)),
                Err(error) => findings.add(Finding::NotNarrowed { reason: error.to_string() }),
            }
        }
    }

    /// Whether ClickHouse has what it should have by now.
    fn check_coverage(
        &self,
        partition: i32,
        end: i64,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let kafka = &self.config.kafka;
        let allowed = self.options.max_lag.unwrap_or(self.config.aggregator.flush_interval() * 10);
        let ledger = &self.stored[&partition].ledger;
        let (stored, position) = (ledger.deltas.high, ledger.increments.high);
        // From the last batch that is stored on.
        let from = (stored - 1).max(0);
        let mut batches = PartitionReader::new(kafka, &kafka.deltas, partition, from)?;
        let (begins, batches_end) = (batches.begins(), batches.end());
        if stored > batches_end {
            let reason = format!(
                "position in deltas: ClickHouse is at offset {stored}, but Kafka ends at \
                 {batches_end}"
            );
            findings.add(Finding::Ledger { reason });
            return Ok(());
        }
        if begins > stored {
            findings.add(Finding::DeltasBegin { begins, stored });
        }
        let mut last_is_seen = stored == 0 || begins >= stored;
        while let Some(batch) = batches.next()? {
            let (offset, at_ms) = (batch.offset(), batch.timestamp().to_millis());
            let header = batch.payload().and_then(|payload| wire::split(payload).ok());
            let header = header.and_then(|(_, body)| DeltaBatch::decode(body).ok());
            let (from, to) = header.map_or((-1, -1), |batch| (batch.header.from, batch.header.to));
            if offset < stored {
                last_is_seen = true;
                if to != position {
                    let reason = format!(
                        "position in increments: ClickHouse is at offset {position}, but its last \
                         batch, at offset {offset} of deltas, ends at {to}"
                    );
                    findings.add(Finding::Ledger { reason });
                }
                continue;
            }
            // The first batch of all sets where the chain begins.
            if stored > 0 && from != position && begins <= stored {
                let reason = format!(
                    "the batch at offset {offset} of deltas begins at {from}, but ClickHouse is \
                     at offset {position} of increments"
                );
                findings.add(Finding::Ledger { reason });
            }
            let age_ms = at_ms.map_or(i64::MAX, |at_ms| self.as_of_ms.saturating_sub(at_ms));
            let age = Duration::from_millis(age_ms.max(0).cast_unsigned());
            if age > allowed {
                let (seconds, allowed) = (age.as_secs(), allowed.as_secs());
                findings.add(Finding::Behind { offset, seconds, allowed });
            }
            break;
        }
        if !last_is_seen {
            let reason = format!(
                "position in deltas: ClickHouse is at offset {stored}, but deltas has no batch \
                 before that"
            );
            findings.add(Finding::Ledger { reason });
        }
        if position == 0 && end > 0 && self.has_messages(partition)? {
            findings.add(Finding::NothingStored);
        }
        Ok(())
    }

    /// Whether `increments` has a committed message, besides markers and what was aborted.
    fn has_messages(&self, partition: i32) -> Result<bool, Error> {
        let kafka = &self.config.kafka;
        let mut reader = PartitionReader::from_the_first(kafka, &kafka.increments, partition)?;
        Ok(reader.next()?.is_some())
    }

    fn limit_rejected(&self, partitions: &mut [PartitionReport]) {
        let Some(allowed) = self.options.max_rejected else { return };
        for p in partitions {
            let of_schema =
                |reason: &str| reason.parse::<Reject>().is_ok_and(|reason| reason.is_of_schema());
            let refused = p.rejected_by_reason.iter().filter(|(reason, _)| !of_schema(reason));
            let rejected = refused.map(|(_, count)| count).sum();
            if rejected > allowed {
                p.findings.push(Finding::TooManyRejected { rejected, allowed });
                p.verdict = Verdict::Mismatch;
            }
        }
    }

    /// What contradicts nothing, but matters to who reads the report.
    fn notes(&self, rejected: RejectedTopic, partitions: &[PartitionReport]) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(scope) = self.options.scope.told() {
            let events: i128 = partitions.iter().map(|p| p.compared_events).sum();
            notes.push(format!("compared were only counters of {scope}: {events} increments"));
        }
        if let Some(first) = rejected.first_strange {
            notes.push(format!(
                "{} messages among the rejected are none of an aggregator's, and were passed \
                 over; the first: {first}",
                rejected.strange
            ));
        }
        notes
    }
}
