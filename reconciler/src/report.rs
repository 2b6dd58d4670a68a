use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use tally_counts::{Fingerprint, Reject};

/// What verifying came to.
#[derive(Debug)]
pub struct Report {
    pub partitions: Vec<PartitionReport>,
}

/// What Kafka and ClickHouse say of one partition, as of one ledger position.
#[derive(Debug)]
pub struct PartitionReport {
    pub partition: i32,
    /// The ledger's position in `increments`: the next offset.
    pub position: i64,
    /// Messages in Kafka that are not in ClickHouse yet, at most: transaction markers count too.
    pub lag: i64,
    /// Messages that the replay saw.
    pub messages: u64,
    pub counted: u64,
    pub duplicate: u64,
    pub rejected: u64,
    pub increments: u64,
    pub replayed: Fingerprint,
    pub stored: Fingerprint,
    /// Where Kafka and ClickHouse disagree; empty if the counts are right.
    pub findings: Vec<Finding>,
}

/// A disagreement between Kafka and ClickHouse.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    /// The ledger contradicts itself.
    Ledger(String),
    Fingerprint,
    /// The ledger's account of the messages is not what the replay came to.
    Accounting {
        what: &'static str,
        stored: i64,
        replayed: u64,
    },
    /// A message that can not have been counted is not among the rejected.
    NotCountable {
        offset: i64,
        reason: Reject,
        detail: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Ledger(reason) => f.write_str(reason),
            Finding::Fingerprint => f.write_str("the counts are not what Kafka comes to"),
            Finding::Accounting { what, stored, replayed } => {
                write!(f, "{what}: {stored} in the ledger, {replayed} in Kafka")
            }
            Finding::NotCountable { offset, reason, detail } => {
                write!(
                    f,
                    "offset {offset} can not have been counted ({reason}: {detail}), nor was it \
                     rejected"
                )
            }
        }
    }
}

impl Report {
    /// Whether every partition agrees.
    pub fn agrees(&self) -> bool {
        self.partitions.iter().all(|partition| partition.findings.is_empty())
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
            "position",
            "lag",
            "messages",
            "= counted",
            "+ duplicate",
            "+ rejected",
            "increments",
            "fingerprint: Kafka",
            "ClickHouse",
            "verdict",
        ]);
        for p in &self.partitions {
            table.add_row([
                p.partition.to_string(),
                p.position.to_string(),
                p.lag.to_string(),
                p.messages.to_string(),
                p.counted.to_string(),
                p.duplicate.to_string(),
                p.rejected.to_string(),
                p.increments.to_string(),
                p.replayed.to_string(),
                p.stored.to_string(),
                String::from(if p.findings.is_empty() { "agrees" } else { "MISMATCH" }),
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
        }
        let (messages, increments) = (self.total(|p| p.messages), self.total(|p| p.increments));
        match self.partitions.iter().filter(|p| !p.findings.is_empty()).count() {
            0 => write!(
                f,
                "all {} partitions agree: {messages} messages, {increments} increments",
                self.partitions.len()
            ),
            bad => {
                write!(f, "{bad} of {} partitions do NOT agree with Kafka", self.partitions.len())
            }
        }
    }
}
