//! What the counts of each partition come to in ClickHouse, as keyed fingerprints, beside the
//! ledger of the same snapshot.

use std::collections::BTreeMap;

use clickhouse::error::Error;
use clickhouse::{Client, Row};
use serde::Deserialize;
use tally_counts::ledger::{self, RESERVED_NAMESPACE, SumAndHigh};
use tally_counts::{KeyedFingerprint, Salt};

use super::COUNTS;
use super::ledger::Ledger;
use super::ledger_row::{LEDGER_KEYS, kafka_partition, sql_is_ledger, sql_ledger_keys};

/// All that is stored of one partition, as of one snapshot.
#[derive(Clone, Debug)]
pub struct StoredCounts {
    pub ledger: Ledger,
    /// Of the counts in each range of [`KeyedFingerprint::RANGES`].
    pub fingerprints: Vec<KeyedFingerprint>,
    /// Of all counts.
    pub events: i128,
}

impl Default for StoredCounts {
    fn default() -> StoredCounts {
        let fingerprints = vec![KeyedFingerprint::ZERO; KeyedFingerprint::RANGES];
        StoredCounts { ledger: Ledger::default(), fingerprints, events: 0 }
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

/// What some rows of one part of the table come to: counts of one range, or those of one ledger
/// key.
#[derive(Row, Deserialize)]
pub(super) struct RangeRow {
    partition: u32,
    pub(super) part: String,
    /// The range of the counts; below 0, minus the place in [`LEDGER_KEYS`], from 1 on, or
    /// [`KNOWN`].
    range: i32,
    fingerprint: [u8; 32],
    total_events: i128,
    total: i128,
    highest: i64,
    pub(super) rows: u64,
}

/// The range of the one row that is read of a part that is known.
const KNOWN: i32 = i32::MIN;

impl RangeRow {
    pub(super) fn partition(&self) -> i32 {
        kafka_partition(self.partition)
    }

    pub(super) fn is_of_known_part(&self) -> bool {
        self.range == KNOWN
    }
}

impl StoredCounts {
    pub(super) fn add_row(&mut self, row: &RangeRow) {
        if let Ok(range) = usize::try_from(row.range) {
            self.fingerprints[range] += KeyedFingerprint::from_bytes(row.fingerprint);
            self.events += row.total_events;
            return;
        }
        // A sum that is beyond 64 bits must not be cut down to one that looks right.
        let sum = i64::try_from(row.total).unwrap_or(i64::MAX);
        let mut of_key = Ledger::default();
        match usize::try_from(-1 - row.range).map(|index| LEDGER_KEYS[index]) {
            Ok(ledger::DELTAS) => of_key.deltas = SumAndHigh { sum, high: row.highest },
            Ok(ledger::INCREMENTS) => of_key.increments = SumAndHigh { sum, high: row.highest },
            Ok(ledger::COUNTED) => of_key.counted = sum,
            Ok(ledger::DUPLICATE) => of_key.duplicate = sum,
            Ok(ledger::REJECTED) => of_key.rejected = sum,
            _ => of_key.counted_increments = sum,
        }
        self.ledger.add(&of_key);
    }

    /// Adds other rows of the same partition.
    pub(super) fn add(&mut self, other: &StoredCounts) {
        self.ledger.add(&other.ledger);
        for (of_range, other) in self.fingerprints.iter_mut().zip(&other.fingerprints) {
            *of_range += *other;
        }
        self.events += other.events;
    }
}

/// Reads the whole table, in one scan; of the counts, those that meet the condition.
pub async fn stored_counts(
    client: &Client,
    salt: &Salt,
    condition: &str,
) -> Result<BTreeMap<i32, StoredCounts>, Error> {
    let mut rows =
        client.query(&sql_ranges(salt, Parts::Together, condition)).fetch::<RangeRow>()?;
    let mut stored: BTreeMap<i32, StoredCounts> = BTreeMap::new();
    while let Some(row) = rows.next().await? {
        stored.entry(row.partition()).or_default().add_row(&row);
    }
    Ok(stored)
}

/// Whether parts are told apart.
pub(super) enum Parts<'a> {
    Together,
    /// Each for itself; of those with these names, a list of texts, only one row is read.
    Apart {
        known: &'a str,
    },
}

/// The query for [`RangeRow`]s, of counts that meet the condition.
pub(super) fn sql_ranges(salt: &Salt, parts: Parts<'_>, condition: &str) -> String {
    // A number tells parts apart at less cost than a name.
    let (part, group_by_part, is_known) = match parts {
        Parts::Together => ("''", "", "0".to_owned()),
        Parts::Apart { known: "" } => ("any(_part)", "_part_index, ", "0".to_owned()),
        Parts::Apart { known } => ("any(_part)", "_part_index, ", format!("_part IN ({known})")),
    };
    let is_count = format!("namespace != '{RESERVED_NAMESPACE}'");
    // Few columns that are added up a group, so that all groups fit the processor's cache.
    format!(
        "SELECT partition, {part} AS part, \
         toInt32(multiIf({is_known}, {KNOWN}, {is_count}, {}, -indexOf([{}], key))) AS range, \
         {} AS fingerprint, \
         sum(toInt128(events)) AS total_events, sum(toInt128(sum)) AS total, max(high) AS highest, \
         count() AS rows \
         FROM (SELECT *, _part, _part_index, sum, {} AS weight FROM {COUNTS} \
         PREWHERE NOT {is_known} OR _part_offset = 0 \
         WHERE {is_known} OR ({is_count} AND {condition}) OR ({})) \
         GROUP BY {group_by_part}partition, range",
        Salt::sql_range("weight"),
        sql_ledger_keys(),
        salt.sql_fingerprint("weight"),
        salt.sql_weight(),
        sql_is_ledger(),
    )
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
