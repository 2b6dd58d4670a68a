//! What the counts of each partition come to in ClickHouse, as keyed fingerprints, beside the
//! ledger of the same snapshot.

use std::collections::BTreeMap;

use clickhouse::error::Error;
use clickhouse::{Client, Row};
use serde::Deserialize;
use tally_counts::ledger::{self, RESERVED_NAMESPACE, SumAndHigh};
use tally_counts::{KeyedFingerprint, QuickFingerprint, Salt};

use super::COUNTS;
use super::ledger::Ledger;
use super::ledger_row::{LEDGER_KEYS, kafka_partition, sql_is_ledger, sql_ledger_keys};

/// What is stored of one partition, as of one snapshot. The default is that nothing is.
#[derive(Clone, Debug)]
pub struct StoredCounts {
    pub ledger: Ledger,
    /// What all rows come to, where all were read.
    pub whole: Option<WholeCounts>,
    /// What the counts come to, where parts are told apart.
    pub quick: QuickFingerprint,
}

/// What all counts of one partition come to.
#[derive(Clone, Debug)]
pub struct WholeCounts {
    /// Of the counts in each range of [`KeyedFingerprint::RANGES`].
    pub fingerprints: Vec<KeyedFingerprint>,
    pub events: i128,
}

impl Default for StoredCounts {
    fn default() -> StoredCounts {
        let fingerprints = vec![KeyedFingerprint::ZERO; KeyedFingerprint::RANGES];
        StoredCounts {
            ledger: Ledger::default(),
            whole: Some(WholeCounts { fingerprints, events: 0 }),
            quick: QuickFingerprint::ZERO,
        }
    }
}

/// One counter's bucket in one partition.
#[derive(Clone, Debug, Row, Deserialize)]
pub struct StoredCell {
    pub namespace: String,
    pub key: String,
    /// In seconds since 1970.
    pub bucket: u32,
    pub total: i128,
    pub total_events: i128,
    reached: i64,
}

/// What some rows come to, of one part or of all: counts of one range, or those of one ledger key.
#[derive(Row, Deserialize)]
pub(super) struct RangeRow {
    partition: u32,
    pub(super) part: String,
    /// The range of the counts; below 0 a kind of [`ledger_of_kind`].
    range: i32,
    fingerprint: [u8; 32],
    quick: i128,
    total_events: i128,
    total: i128,
    highest: i64,
    pub(super) rows: u64,
}

impl RangeRow {
    pub(super) fn partition(&self) -> Option<i32> {
        kafka_partition(self.partition)
    }

    /// Adds what the row says to the ledger, or to the quick fingerprint of the counts.
    pub(super) fn add_to(&self, ledger: &mut Ledger, quick: &mut QuickFingerprint) {
        if self.range < 0 {
            ledger.add(&ledger_of_kind(self.range, self.total, self.highest));
        } else {
            *quick += QuickFingerprint::from_bits(self.quick);
        }
    }
}

/// The part of a ledger that the rows of one of its keys come to. The kind is minus the key's place
/// in [`LEDGER_KEYS`], from 1 on.
pub(super) fn ledger_of_kind(kind: i32, total: i128, highest: i64) -> Ledger {
    // A sum that is beyond 64 bits must not be cut down to one that looks right.
    let sum = i64::try_from(total).unwrap_or(i64::MAX);
    let mut of_key = Ledger::default();
    match usize::try_from(-1 - kind).map(|index| LEDGER_KEYS[index]) {
        Ok(ledger::DELTAS) => of_key.deltas = SumAndHigh { sum, high: highest },
        Ok(ledger::INCREMENTS) => of_key.increments = SumAndHigh { sum, high: highest },
        Ok(ledger::COUNTED) => of_key.counted = sum,
        Ok(ledger::DUPLICATE) => of_key.duplicate = sum,
        Ok(ledger::REJECTED) => of_key.rejected = sum,
        _ => of_key.counted_increments = sum,
    }
    of_key
}

impl StoredCounts {
    pub(super) fn add_row(&mut self, row: &RangeRow) {
        row.add_to(&mut self.ledger, &mut self.quick);
        if let (Ok(range), Some(whole)) = (usize::try_from(row.range), &mut self.whole) {
            whole.fingerprints[range] += KeyedFingerprint::from_bytes(row.fingerprint);
            whole.events += row.total_events;
        }
    }
}

/// Reads the whole table, in one scan; of the counts, those that meet the condition.
pub async fn stored_counts(
    client: &Client,
    salt: &Salt,
    condition: &str,
) -> Result<BTreeMap<i32, StoredCounts>, Error> {
    let sql = sql_ranges(salt, Parts::Together, condition);
    let mut rows = client.query(&sql).fetch::<RangeRow>()?;
    let mut stored: BTreeMap<i32, StoredCounts> = BTreeMap::new();
    while let Some(row) = rows.next().await? {
        let Some(partition) = row.partition() else { continue };
        stored.entry(partition).or_default().add_row(&row);
    }
    Ok(stored)
}

/// Whether parts are told apart.
pub(super) enum Parts<'a> {
    Together,
    /// Each for itself, with its quick fingerprint too; only of Kafka partitions that meet the
    /// condition.
    Apart(&'a str),
}

/// The query for [`RangeRow`]s, of counts that meet the condition.
pub(super) fn sql_ranges(salt: &Salt, parts: Parts<'_>, condition: &str) -> String {
    // A number tells parts apart at less cost than a name.
    let (part, group_by_part, quick, partitions) = match parts {
        Parts::Together => ("''", "", String::from("toInt128(0)"), "1"),
        Parts::Apart(partitions) => {
            ("any(_part)", "_part_index, ", salt.sql_quick_fingerprint(), partitions)
        }
    };
    let is_count = sql_is_count();
    // Few columns that are added up a group, so that all groups fit the processor's cache.
    format!(
        "SELECT partition, {part} AS part, \
         toInt32(if({is_count}, {}, {})) AS range, \
         {} AS fingerprint, {quick} AS quick, \
         sum(toInt128(events)) AS total_events, sum(sum) AS total, max(high) AS highest, \
         count() AS rows \
         FROM (SELECT *, _part, _part_index, sum, {} AS weight FROM {COUNTS} \
         WHERE {partitions} AND (({is_count} AND {condition}) OR ({}))) \
         GROUP BY {group_by_part}partition, range",
        Salt::sql_range("weight"),
        sql_ledger_kind(),
        salt.sql_fingerprint("weight"),
        salt.sql_weight(),
        sql_is_ledger(),
    )
}

pub(super) fn sql_is_count() -> String {
    format!("namespace != '{RESERVED_NAMESPACE}'")
}

/// Which of the ledger's keys a row of it has, for [`ledger_of_kind`].
pub(super) fn sql_ledger_kind() -> String {
    format!("-indexOf([{}], key)", sql_ledger_keys())
}

/// Counters of one partition, and the ledger's positions, of one snapshot.
#[derive(Clone, Debug, Default)]
pub struct StoredCells {
    /// The highest next offset of `increments`.
    pub position: i64,
    /// The highest next offset of `deltas`.
    pub batches_end: i64,
    pub cells: Vec<StoredCell>,
}

/// Reads the counters of one partition that are in these ranges, and meet the condition. Bytes of a
/// name that are not UTF-8, which no increment has, are told as U+FFFD.
pub async fn stored_cells(
    client: &Client,
    salt: &Salt,
    partition: i32,
    ranges: &[usize],
    condition: &str,
) -> Result<StoredCells, Error> {
    let ranges: Vec<String> = ranges.iter().map(usize::to_string).collect();
    let sql = format!(
        "SELECT toValidUTF8(namespace) AS namespace, toValidUTF8(key) AS key, \
         toUInt32(bucket) AS bucket, total, total_events, reached FROM ( \
         SELECT namespace, key, bucket, sum(sum) AS total, \
         sum(toInt128(events)) AS total_events, max(high) AS reached FROM {COUNTS} \
         WHERE partition = {partition} AND ({} OR (namespace != '{RESERVED_NAMESPACE}' \
         AND {condition} AND {} IN ({}))) GROUP BY namespace, key, bucket)",
        sql_is_ledger(),
        Salt::sql_range(&salt.sql_weight()),
        ranges.join(", ")
    );
    let mut stored = StoredCells::default();
    for cell in client.query(&sql).fetch_all::<StoredCell>().await? {
        match (cell.namespace.as_str(), cell.key.as_str()) {
            (RESERVED_NAMESPACE, ledger::INCREMENTS) => stored.position = cell.reached,
            (RESERVED_NAMESPACE, ledger::DELTAS) => stored.batches_end = cell.reached,
            (RESERVED_NAMESPACE, _) => {}
            _ => stored.cells.push(cell),
        }
    }
    Ok(stored)
}
