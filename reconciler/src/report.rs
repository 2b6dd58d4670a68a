use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use tally_counts::Reject;

/// What verifying came to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    pub partitions: Vec<PartitionReport>,
    /// How long the messages took to be replayed, in seconds; the rest of the time went into
    /// questions to ClickHouse and Kafka.
    pub replay_seconds: f64,
    /// What was noticed besides, and contradicts nothing.
    pub notes: Vec<String>,
}

/// The worst that is said of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The counts are what Kafka comes to, up to the partition's position.
    Agrees,
    /// Nothing contradicts, but not all that was committed is proven.
    NotProven,
    Mismatch,
}

impl Verdict {
    /// As metrics name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verdict::Agrees => "agrees",
            Verdict::NotProven => "not_proven",
            Verdict::Mismatch => "mismatch",
        }
    }
}

/// What Kafka and ClickHouse say of one partition, as of one ledger position.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionReport {
    /// As ClickHouse numbers it, which may be beyond what Kafka can have.
    pub partition: i64,
    pub verdict: Verdict,
    /// The ledger's position in `increments`, the next offset: all before it is proven, if the
    /// partition agrees.
    pub position: i64,
    /// The next offset that Kafka will give.
    pub end: i64,
    /// The first offset that was read.
    pub replayed_from: i64,
    /// The checkpoint that says what the messages before came to.
    pub checkpoint: Option<CheckpointUse>,
    /// Kafka's time of the last message that was replayed, in milliseconds since 1970.
    pub through_ms: Option<i64>,
    /// Messages that the replay saw, and the checkpoint before it.
    pub messages: u64,
    pub counted: u64,
    pub duplicate: u64,
    pub rejected: u64,
    pub rejected_by_reason: BTreeMap<&'static str, u64>,
    pub increments: u64,
    /// Increments of the counters that were compared: all, unless the scope is less.
    pub compared_events: i128,
    /// Where Kafka and ClickHouse disagree, or why nothing is known; empty if the counts are right.
    pub findings: Vec<Finding>,
    /// Findings beyond the most that are kept.
    pub more_findings: u64,
}

/// A checkpoint that was believed.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointUse {
    /// The next offset of `increments` when it was signed.
    pub position: i64,
    /// In milliseconds since 1970.
    pub signed_ms: i64,
    /// The public key that it is signed by, in base64.
    pub key: String,
}

impl PartitionReport {
    /// Offsets in Kafka that are not in ClickHouse yet: messages and transaction markers.
    pub fn lag(&self) -> i64 {
        self.end - self.position
    }

    /// Of rows in ClickHouse whose partition Kafka, which has so many, does not have.
    pub(crate) fn unknown(partition: u32, partitions: i32) -> PartitionReport {
        let finding = Finding::UnknownPartition { partitions };
        PartitionReport {
            partition: partition.into(),
            verdict: finding.verdict(),
            position: 0,
            end: 0,
            replayed_from: 0,
            checkpoint: None,
            through_ms: None,
            messages: 0,
            counted: 0,
            duplicate: 0,
            rejected: 0,
            rejected_by_reason: BTreeMap::new(),
            increments: 0,
            compared_events: 0,
            findings: vec![finding],
            more_findings: 0,
        }
    }

    /// The partition's number in Kafka; `None` where Kafka does not have it.
    pub(crate) fn in_kafka(&self) -> Option<i32> {
        let is_unknown = |finding: &Finding| matches!(finding, Finding::UnknownPartition { .. });
        if self.findings.iter().any(is_unknown) {
            return None;
        }
        i32::try_from(self.partition).ok()
    }

    /// Whether all before the position is proven: what is only behind is, as far as it goes.
    pub(crate) fn is_proven_so_far(&self) -> bool {
        let is_lag =
            |finding: &Finding| matches!(finding, Finding::Behind { .. } | Finding::NothingStored);
        self.findings.iter().all(is_lag)
    }

    /// How much of Kafka's offsets is proven if the partition agrees, in percent.
    fn share(&self) -> f64 {
        if self.end == 0 { 100.0 } else { self.position as f64 * 100.0 / self.end as f64 }
    }
}

/// A disagreement between Kafka and ClickHouse, or a reason why nothing is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Finding {
    /// The ledger contradicts itself.
    Ledger { reason: String },
    /// Counts differ in so many of the ranges that they were compared in.
    Fingerprint { ranges: usize },
    /// One counter's bucket differs.
    Counter {
        namespace: String,
        key: String,
        bucket_s: u32,
        /// What Kafka comes to, and what ClickHouse has: sum and events, in JSON as text.
        #[serde(serialize_with = "as_text")]
        expected: (i128, i128),
        #[serde(serialize_with = "as_text")]
        found: (i128, i128),
        parting: Parting,
    },
    /// The ledger's account of the messages is not what the replay came to.
    Accounting { what: &'static str, stored: i128, replayed: i128 },
    /// The counters that differ could not be told.
    NotNarrowed { reason: String },
    /// ClickHouse has rows of a partition that Kafka does not have.
    UnknownPartition { partitions: i32 },
    /// The batches between what is stored and this offset are gone from `deltas`.
    DeltasBegin { begins: i64, stored: i64 },
    /// A message that cannot have been counted is not among the rejected.
    NotCountable {
        offset: i64,
        #[serde(serialize_with = "name")]
        reason: Reject,
        detail: String,
    },
    /// A message that counts is among the rejected.
    WronglyRejected {
        offset: i64,
        #[serde(serialize_with = "name")]
        reason: Reject,
    },
    /// ClickHouse lacks a batch that was committed long ago.
    Behind { offset: i64, seconds: u64, allowed: u64 },
    /// Nothing is stored, but Kafka has messages.
    NothingStored,
    /// The messages before this offset are gone from Kafka, and those from `needed` on are needed:
    /// by the checkpoint, or because there is none.
    LogBegins { begins: i64, needed: i64, by_checkpoint: bool },
    /// ClickHouse is behind where it was in an earlier round.
    WentBack { position: i64, reached: i64 },
    /// Kafka does not give the messages.
    Unreadable { reason: String },
    /// More messages were rejected than are allowed, for reasons that the gateway refuses.
    TooManyRejected { rejected: u64, allowed: u64 },
}

fn as_text<S: serde::Serializer>((sum, events): &(i128, i128), to: S) -> Result<S::Ok, S::Error> {
    (sum.to_string(), events.to_string()).serialize(to)
}

fn name<S: serde::Serializer>(reason: &Reject, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(reason.as_str())
}

/// Where a counter's way from Kafka to ClickHouse first goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum Parting {
    /// In the batch at this offset of `deltas`, which is not what its messages come to.
    Batch { offset: i64, from: i64, to: i64 },
    /// Each batch in `deltas` is right: ClickHouse's rows are not what was sent to it.
    Store,
    /// The first batches are gone from `deltas`, and those that are there are right.
    GoneBatches { begins: i64 },
}

impl Finding {
    fn verdict(&self) -> Verdict {
        match self {
            Finding::Behind { .. }
            | Finding::NothingStored
            | Finding::LogBegins { .. }
            | Finding::WentBack { .. }
            | Finding::DeltasBegin { .. }
            | Finding::Unreadable { .. } => Verdict::NotProven,
            _ => Verdict::Mismatch,
        }
    }
}

/// Findings of one partition, of which the first are kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) kept: Vec<Finding>,
    pub(crate) more: u64,
}

impl Findings {
    const MOST: usize = 100;

    pub(crate) fn add(&mut self, finding: Finding) {
        if self.kept.len() < Self::MOST {
            self.kept.push(finding);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.kept.iter().map(Finding::verdict).max().unwrap_or(Verdict::Agrees)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Ledger { reason } => f.write_str(reason),
            Finding::Fingerprint { ranges } => write!(
                f,
                "the counts are not what Kafka comes to: they differ in {ranges} of {} ranges",
                tally_counts::KeyedFingerprint::RANGES
            ),
            Finding::Counter { namespace, key, bucket_s, expected, found, parting } => {
                let bucket = jiff::Timestamp::from_second(i64::from(*bucket_s))
                    .map_or_else(|_| bucket_s.to_string(), |bucket| bucket.to_string());
                write!(
                    f,
                    "namespace {namespace:?}, key {key:?}, bucket {bucket}: expected {} in {} \
                     events, found {} in {} (difference {} in {}); {parting}",
                    expected.0,
                    expected.1,
                    found.0,
                    found.1,
                    found.0.wrapping_sub(expected.0),
                    found.1.wrapping_sub(expected.1),
                )
            }
            Finding::Accounting { what, stored, replayed } => {
                write!(f, "{what}: {stored} in ClickHouse, {replayed} in Kafka")
            }
            Finding::NotNarrowed { reason } => {
                write!(f, "the counters that differ could not be told: {reason}")
            }
            Finding::UnknownPartition { partitions } => {
                write!(
                    f,
                    "ClickHouse has rows of it, but Kafka has {partitions} partitions only: no \
                     sink wrote them"
                )
            }
            Finding::DeltasBegin { begins, stored } => write!(
                f,
                "not proven: deltas begins at offset {begins}, but ClickHouse is at offset \
                 {stored}: the batches between are gone"
            ),
            Finding::NotCountable { offset, reason, detail } => {
                write!(
                    f,
                    "offset {offset} can not have been counted ({reason}: {detail}), nor was it \
                     rejected"
                )
            }
            Finding::WronglyRejected { offset, reason } => {
                write!(f, "offset {offset} was rejected as {reason}, but it counts")
            }
            Finding::Behind { offset, seconds, allowed } => write!(
                f,
                "not proven: ClickHouse lacks the batches from offset {offset} of deltas on, the \
                 first of which is {seconds} s old ({allowed} s are allowed): do the sinks run?"
            ),
            Finding::NothingStored => f.write_str(
                "not proven: ClickHouse has nothing of this partition, but Kafka has messages",
            ),
            Finding::LogBegins { begins, by_checkpoint: false, .. } => write!(
                f,
                "not proven: Kafka begins at offset {begins}; the messages before it are gone, and \
                 no checkpoint says what they came to: no total of this partition can be proven \
                 any more"
            ),
            Finding::LogBegins { begins, needed, by_checkpoint: true } => write!(
                f,
                "not proven: Kafka begins at offset {begins}, but the checkpoint needs the \
                 messages from offset {needed} on"
            ),
            Finding::WentBack { position, reached } => write!(
                f,
                "not proven: ClickHouse is at offset {position}, and was at {reached} before: was \
                 it restored? The sink fills it again"
            ),
            Finding::Unreadable { reason } => write!(f, "not proven: {reason}"),
            Finding::TooManyRejected { rejected, allowed } => write!(
                f,
                "{rejected} messages were rejected for what the gateway refuses, {allowed} are \
                 allowed"
            ),
        }
    }
}

impl fmt::Display for Parting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Parting::Batch { offset, from, to } => write!(
                f,
                "the batch at offset {offset} of deltas is not what offsets {from}..{to} come to"
            ),
            Parting::Store => {
                f.write_str("every batch in deltas is right, ClickHouse's rows are not")
            }
            Parting::GoneBatches { begins } => write!(
                f,
                "the batches that deltas has, from offset {begins} on, are right; those before \
                 are gone"
            ),
        }
    }
}

impl Report {
    /// Whether every partition agrees.
    pub fn agrees(&self) -> bool {
        self.verdict == Verdict::Agrees
    }

    fn total(&self, of: impl Fn(&PartitionReport) -> u64) -> u64 {
        self.partitions.iter().map(of).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
            "partition",
            "proven through",
            "of Kafka's",
            "lag",
            "messages",
            "= counted",
            "+ duplicate",
            "+ rejected",
            "increments",
            "last message",
            "verdict",
        ]);
        for p in &self.partitions {
            let through = p
                .through_ms
                .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
                .map_or_else(String::new, |at| at.to_string());
            table.add_row([
                p.partition.to_string(),
                p.position.to_string(),
                format!("{:.1} %", p.share()),
                p.lag().to_string(),
                p.messages.to_string(),
                p.counted.to_string(),
                p.duplicate.to_string(),
                p.rejected.to_string(),
                p.increments.to_string(),
                through,
                String::from(match p.verdict {
                    Verdict::Agrees => "agrees",
                    Verdict::NotProven => "NOT PROVEN",
                    Verdict::Mismatch => "MISMATCH",
                }),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        for p in &self.partitions {
            for finding in &p.findings {
                writeln!(f, "partition {}: {finding}", p.partition)?;
            }
            if p.more_findings > 0 {
                writeln!(f, "partition {}: and {} findings more", p.partition, p.more_findings)?;
            }
        }
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for (reason, count) in self.partitions.iter().flat_map(|p| &p.rejected_by_reason) {
            *reasons.entry(reason).or_default() += count;
        }
        if !reasons.is_empty() {
            let reasons: Vec<String> =
                reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            writeln!(f, "rejected: {}", reasons.join(", "))?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        let (messages, increments) = (self.total(|p| p.messages), self.total(|p| p.increments));
        let all = self.partitions.len();
        let of = |verdict| self.partitions.iter().filter(|p| p.verdict == verdict).count();
        match self.verdict {
            Verdict::Agrees => write!(
                f,
                "all {all} partitions agree: {messages} messages, {increments} increments"
            ),
            Verdict::NotProven => {
                write!(f, "{} of {all} partitions are NOT proven", of(Verdict::NotProven))
            }
            Verdict::Mismatch => {
                write!(f, "{} of {all} partitions do NOT agree with Kafka", of(Verdict::Mismatch))
            }
        }
    }
}
