//! What an audit came to.

use std::fmt;

use serde::Serialize;

/// How many findings of each kind are told; of the others, how many there are.
const LISTED_OF_EACH: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Acknowledged, and not in the log.
    Lost,
    /// In the log more often than it was sent, or in several partitions, so that it counts twice.
    Doubled,
    /// In Kafka, but not where its acknowledgement said.
    Misplaced,
    /// In the log, although its sender was told that it is not.
    Applied,
    /// In the log with other content than was sent.
    Altered,
    /// In the log, but nobody sent it.
    Foreign,
    /// Batches do not follow each other, or do not cover the log.
    Chain,
    /// A batch's numbers of messages are not those of the log.
    Accounting,
    /// A batch's deltas are not what its messages come to.
    Sums,
    /// The ledger is not what the batches and the log come to.
    Ledger,
    /// A counter of the store is not what the log comes to.
    Counter,
    /// The rejected messages are not those that had to be.
    Rejected,
    /// Messages that no batch covers, or batches that ClickHouse does not have. What it has is held
    /// against the messages that it says it is of, so this alone is no wrong count.
    Behind,
    /// A gateway answered what it should not.
    Answer,
}

#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub kind: FindingKind,
    /// Partition and offset in `increments`, where it can be told.
    pub at: Option<(i32, i64)>,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = format!("{:?}", self.kind).to_lowercase();
        match self.at {
            Some((partition, offset)) => write!(f, "{kind} at {partition}:{offset}: {}", self.what),
            None => write!(f, "{kind}: {}", self.what),
        }
    }
}

/// All that is wrong: the first of each kind told, the rest counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    pub listed: Vec<Finding>,
    pub omitted: u64,
}

impl FindingKind {
    /// Whether its offset is a message's own, not the beginning of a batch.
    pub(super) fn names_message(self) -> bool {
        !matches!(
            self,
            FindingKind::Chain
                | FindingKind::Accounting
                | FindingKind::Sums
                | FindingKind::Ledger
                | FindingKind::Behind
                | FindingKind::Answer
        )
    }
}

impl Findings {
    /// Takes the finding in; its text is made only if it is listed.
    pub(super) fn add(
        &mut self,
        kind: FindingKind,
        at: Option<(i32, i64)>,
        what: impl fmt::Display,
    ) {
        if self.listed.iter().filter(|listed| listed.kind == kind).count() < LISTED_OF_EACH {
            self.listed.push(Finding { kind, at, what: what.to_string() });
        } else {
            self.omitted += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// Whether nothing is wrong but that something is not stored yet.
    fn are_of_lag(&self) -> bool {
        self.listed.iter().all(|finding| finding.kind == FindingKind::Behind)
    }
}

/// What was sent, by the record. What went in twice on purpose is more than one message here.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sent {
    pub messages: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub not_applied: u64,
    pub bad: u64,
    /// Increments in acknowledged messages.
    pub increments: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Logged {
    pub messages: u64,
    pub counted: u64,
    pub duplicate: u64,
    pub rejected: u64,
    /// Increments that count.
    pub increments: u64,
    /// Increments left out, since their id or their batch's was there before.
    pub skipped: u64,
    /// Messages that a Kafka client appended once more than it was asked to.
    pub repeated: u64,
    pub batches: u64,
    /// Counters of one partition and time bucket.
    pub counters: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Audit {
    pub sent: Sent,
    pub logged: Logged,
    /// Increments that were acknowledged or are in the log, and that the log or the store lacks.
    pub lost: u64,
    /// Increments that the log or the store has too many of.
    pub doubled: u64,
    /// Increments in the log beyond what ClickHouse says that it has.
    pub behind: u64,
    /// Counters of one partition and time bucket that differ between log and store.
    pub wrong_counters: u64,
    pub findings: Findings,
    /// What happened around the first wrong offset.
    pub history: Option<String>,
}

impl Audit {
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.behind == 0 && !self.is_wrong()
    }

    /// Whether something is wrong that comes right by no waiting.
    pub fn is_wrong(&self) -> bool {
        let counts = self.lost + self.doubled + self.wrong_counters;
        counts > 0 || !self.findings.are_of_lag()
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Audit { sent, logged, .. } = self;
        writeln!(
            f,
            "  audit: {} messages sent, {} acknowledged with {} increments, \
             {} of unknown outcome, {} not applied; {} bad",
            sent.messages,
            sent.acknowledged,
            sent.increments,
            sent.unknown,
            sent.not_applied,
            sent.bad
        )?;
        writeln!(
            f,
            "  Kafka: {} messages ({} appended once more by their clients), \
             {} counted, {} duplicate, {} rejected; {} increments count, {} do not",
            logged.messages,
            logged.repeated,
            logged.counted,
            logged.duplicate,
            logged.rejected,
            logged.increments,
            logged.skipped
        )?;
        write!(
            f,
            "  {} batches, {} counters and buckets: \
             {} increments lost, {} doubled, {} counters wrong",
            logged.batches, logged.counters, self.lost, self.doubled, self.wrong_counters
        )?;
        if self.behind > 0 {
            write!(f, ", {} increments not stored", self.behind)?;
        }
        for finding in &self.findings.listed {
            write!(f, "\n  {finding}")?;
        }
        if self.findings.omitted > 0 {
            write!(f, "\n  and {} more", self.findings.omitted)?;
        }
        if let Some(history) = &self.history {
            write!(f, "\n{history}")?;
        }
        Ok(())
    }
}
