//! The ledger beside what the log and the batches come to.

use std::collections::{BTreeMap, HashMap};

use super::partition::MessageCounts;
use super::{Evidence, Row, kafka};
use crate::audit::verdict::FindingKind;

const BATCH: &str = "batch:";

/// The sum, the events and the maximum of one key.
type Entry = (i128, i64, i64);

impl Evidence<'_> {
    pub(super) fn judge_ledger(&mut self, number: usize) {
        let partition = &self.partitions[number];
        let findings = &mut self.audit.findings;
        let batches = partition.stored_batches().count() as i64;
        let mut expected: BTreeMap<String, Entry> = BTreeMap::new();
        if let Some(last) = partition.stored_batches().last() {
            let MessageCounts { counted, duplicate, rejected, increments } =
                MessageCounts::of(partition.between(partition.begin, last.to));
            let position = |next: i64| (i128::from(next), batches, next);
            let total = |total: i64| (i128::from(total), batches, 0);
            expected.insert("deltas".into(), position(last.offset + 1));
            expected.insert("increments".into(), position(last.to));
            expected.insert("messages.counted".into(), total(counted));
            expected.insert("messages.duplicate".into(), total(duplicate));
            expected.insert("messages.rejected".into(), total(rejected));
            expected.insert("increments.counted".into(), total(increments));
        }
        let mut previous = 0;
        let mut from_of = HashMap::new();
        for batch in partition.stored_batches() {
            let key = format!("{BATCH}{:020}", batch.offset + 1);
            from_of.insert(key.clone(), batch.from);
            expected.insert(key, (0, 1, previous));
            previous = batch.offset + 1;
        }
        let waiting: Vec<i64> = partition.waiting_batches().map(|batch| batch.from).collect();
        if let Some(first) = waiting.first() {
            let at = Some((kafka(number), *first));
            let what = format_args!("partition {number}: {} batches are not stored", waiting.len());
            findings.add(FindingKind::Behind, at, what);
        }
        let stored = merged(&partition.ledger);
        let keys = expected.keys().chain(stored.keys().filter(|key| !expected.contains_key(*key)));
        for key in keys {
            let (want, have) = (expected.get(key), stored.get(key));
            if want != have {
                let at = from_of.get(key).map(|from| (kafka(number), *from));
                let show = |entry: Option<&Entry>| match entry {
                    Some((sum, events, high)) => format!("sum {sum}, events {events}, high {high}"),
                    None => String::from("no row"),
                };
                let what = format_args!(
                    "partition {number}, {key}: {}, should be {}",
                    show(have),
                    show(want)
                );
                findings.add(FindingKind::Ledger, at, what);
            }
        }
    }

    /// Whether ClickHouse has the ledger's row of a batch.
    pub(super) fn is_stored(&self, number: usize, offset: i64) -> bool {
        let key = format!("{BATCH}{:020}", offset + 1);
        self.partitions[number].ledger.iter().any(|row| row.key == key)
    }
}

/// A batch's row has the batch's time; all others have none.
fn merged(rows: &[Row]) -> BTreeMap<String, Entry> {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for row in rows {
        let entry = entries.entry(row.key.clone()).or_insert((0, 0, row.high));
        *entry = (entry.0 + row.sum, entry.1 + row.events, entry.2.max(row.high));
    }
    entries
}
