//! What the counts of each partition come to in ClickHouse, as keyed fingerprints, beside the
//! ledger of the same snapshot.

use std::collections::BTreeMap;

use clickhouse::error::Error;
use clickhouse::{Client, Row};
use serde::Deserialize;
use tally_counts::ledger::{self, RESERVED_NAMESPACE};
use tally_counts::{KeyedFingerprint, Salt};

use super::COUNTS;
use super::ledger::Ledger;
use super::summed_row::{SummedRow, sql_is_ledger, sql_ledger_columns};

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

/// Reads the whole table, in one scan; of the counts, those that meet the condition.
pub async fn stored_counts(
    client: &Client,
    salt: &Salt,
    condition: &str,
) -> Result<BTreeMap<i32, StoredCounts>, Error> {
    let is_count = format!("(namespace != '{RESERVED_NAMESPACE}' AND {condition})");
    let scope = format!("({is_count} OR {})", sql_is_ledger());
    let sql = format!(
        "SELECT partition, {}, if({is_count}, {}, -1) AS range, \
         {} AS fingerprint, sumIf(toInt128(events), {is_count}) AS total_events \
         FROM (SELECT *, sum, {} AS weight FROM {COUNTS} WHERE {scope}) \
         GROUP BY partition, range",
        sql_ledger_columns(),
        Salt::sql_range("weight"),
        salt.sql_fingerprint("weight", &is_count),
        salt.sql_weight(),
    );
    let mut rows = client.query(&sql).fetch::<SummedRow>()?;
    let mut stored: BTreeMap<i32, StoredCounts> = BTreeMap::new();
    while let Some(row) = rows.next().await? {
        let counts = stored.entry(row.partition()).or_default();
        match usize::try_from(row.range) {
            Err(_) => counts.ledger = Ledger::from(&row),
            Ok(range) => {
                counts.fingerprints[range] = KeyedFingerprint::from_bytes(row.fingerprint);
                counts.events += row.total_events;
            }
        }
    }
    Ok(stored)
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
