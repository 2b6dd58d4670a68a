//! What Kafka and ClickHouse hold, compared with what was sent. Pure: bytes and rows in, a verdict
//! out.
//!
//! ```text
//!  increments ─► message ──► fold ──► per message: fate, digest ─┐
//!                                └──► counters by the log ───────┤
//!  deltas ─────► batch ─────► per batch: numbers, digest ────────┼──► judge ─► Audit
//!  rejected ───► rejection ──────────────────────────────────────┤
//!  ClickHouse ─► row ───────► counters, ledger ──────────────────┘
//! ```
//!
//! Whoever reads Kafka and ClickHouse calls these in this order: all of `increments` first. Rows
//! are read before Kafka is, and say first of all how far they go.

mod batches;
mod cells;
mod counters;
mod history;
mod ledger;
mod messages;
mod partition;
mod rejected;
mod request_partition;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use self::cells::Names;
use self::messages::Occurrences;
use self::partition::Partition;
use super::content::Route;
use super::record::{Record, State};
use super::verdict::{Audit, FindingKind, Findings, Sent};

pub(super) use self::rejected::Rejection;

pub(super) struct Evidence<'r> {
    record: &'r Record,
    /// The entry of each request by its number.
    requests: HashMap<u32, u32>,
    /// What was found of each entry.
    found: Vec<Occurrences>,
    names: Names,
    partitions: Vec<Partition>,
    topic_id: Option<String>,
    audit: Audit,
}

/// A row of the table: one counter and bucket of one partition, or a row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) partition: u32,
    pub(super) namespace: String,
    pub(super) key: String,
    /// Seconds since 1970.
    pub(super) bucket: i64,
    pub(super) sum: i128,
    pub(super) events: i64,
    pub(super) high: i64,
}

/// Tally's own namespace in the table.
const LEDGER: &str = "__tally";

impl<'r> Evidence<'r> {
    /// `begins` are the offsets that the partitions of `increments` begin at, `rows` all that will
    /// be shown by [`Evidence::row`].
    pub(super) fn new(record: &'r Record, begins: &[i64], rows: &[Row]) -> Evidence<'r> {
        let entries = record.entries.iter().zip(0u32..);
        let requests = entries.filter(|(entry, _)| entry.way == Route::Request);
        let requests = requests.map(|(entry, mark)| (entry.number, mark)).collect();
        let mut audit = Audit { sent: sent(record), ..Audit::default() };
        for oddity in &record.oddities {
            audit.findings.add(FindingKind::Answer, None, oddity);
        }
        Evidence {
            record,
            requests,
            found: vec![Occurrences::default(); record.entries.len()],
            names: Names::default(),
            partitions: partitions(begins, rows),
            topic_id: None,
            audit,
        }
    }

    /// One row of the table, merged.
    pub(super) fn row(&mut self, row: Row) {
        let partition = usize::try_from(row.partition).ok();
        let Some(partition) = partition.and_then(|number| self.partitions.get_mut(number)) else {
            self.audit.findings.add(
                FindingKind::Ledger,
                None,
                format_args!("a row of no partition: {row:?}"),
            );
            return;
        };
        if row.namespace == LEDGER {
            partition.ledger.push(row);
        } else {
            let cell = (self.names.number(&row.namespace, &row.key), row.bucket);
            cells::add(&mut partition.store, cell, row.sum, row.events);
        }
    }

    pub(super) fn judge(mut self) -> Audit {
        self.judge_messages();
        for number in 0..self.partitions.len() {
            self.judge_batches(number);
            self.judge_ledger(number);
            self.judge_rejected(number);
            self.judge_counters(number);
        }
        self.audit.history = self.history();
        self.audit
    }

    fn findings(&mut self) -> &mut Findings {
        &mut self.audit.findings
    }
}

fn partitions(begins: &[i64], rows: &[Row]) -> Vec<Partition> {
    let mut partitions: Vec<Partition> =
        begins.iter().map(|begin| Partition::new(*begin)).collect();
    for Row { partition, namespace, key, high, .. } in rows {
        let partition = usize::try_from(*partition).ok().and_then(|n| partitions.get_mut(n));
        if let Some(partition) = partition.filter(|_| namespace == LEDGER) {
            match key.as_str() {
                "increments" => {
                    partition.stored.increments = partition.stored.increments.max(*high)
                }
                "deltas" => partition.stored.deltas = partition.stored.deltas.max(*high),
                _ => {}
            }
        }
    }
    partitions
}

fn sent(record: &Record) -> Sent {
    let mut sent = Sent::default();
    for entry in &record.entries {
        if entry.way == Route::Bad {
            sent.bad += 1;
            continue;
        }
        sent.messages += 1;
        match entry.state {
            State::Acknowledged => {
                sent.acknowledged += 1;
                sent.increments += record.content(entry).batch.increments.len() as u64;
            }
            State::Attempted | State::Unknown => sent.unknown += 1,
            State::NotApplied => sent.not_applied += 1,
        }
    }
    sent
}

/// Kafka's number of a partition.
fn kafka(number: usize) -> i32 {
    i32::try_from(number).expect("Kafka's partition numbers have 32 bits")
}
