use std::collections::BTreeMap;
use std::time::Duration;

use clickhouse::error::Error;
use clickhouse::{Client, Row};
use serde::Deserialize;
use tally_counts::ledger::LedgerError;
use tally_counts::{Fingerprint, StoredOffsets, ledger};

use super::COUNTS;

/// The query reads a few rows of each part, so ClickHouse is not answering at all if it takes
/// longer than this.
const POSITION_TIMEOUT: Duration = Duration::from_secs(30);

/// What the counts table says of one partition, all of it in one snapshot: its positions, its
/// account of the messages, and the fingerprint of its counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    pub deltas: ledger::SumAndHigh,
    pub increments: ledger::SumAndHigh,
    /// Messages.
    pub counted: i64,
    pub duplicate: i64,
    pub rejected: i64,
    pub counted_increments: i64,
    /// Fingerprint and events of the counts themselves; zero unless they were asked for, since that
    /// reads the whole partition.
    pub fingerprint: Fingerprint,
    pub events: i64,
}

impl Ledger {
    /// How far the partition is stored; where it has no ledger, the default one says 0. An error if
    /// the ledger contradicts itself.
    pub fn stored_offsets(&self) -> Result<StoredOffsets, LedgerError> {
        Ok(StoredOffsets {
            deltas: self.deltas.position()?,
            increments: self.increments.position()?,
        })
    }
}

#[derive(Row, Deserialize)]
struct StoredLedger {
    partition: u32,
    deltas_sum: i64,
    deltas_high: i64,
    increments_sum: i64,
    increments_high: i64,
    counted: i64,
    duplicate: i64,
    rejected: i64,
    counted_increments: i64,
    fingerprint: u64,
    events: i64,
}

/// Reads the ledger of every partition that has one, in one scan; with `fingerprint`, the counts'
/// too.
pub async fn ledgers(client: &Client, fingerprint: bool) -> Result<BTreeMap<i32, Ledger>, Error> {
    let sql = ledgers_sql(fingerprint, "1");
    if fingerprint { read(client, &sql).await } else { read_soon(client, &sql).await }
}

/// Reads the ledger of one partition, without the fingerprint; `None` if it has none yet.
pub async fn ledger(client: &Client, partition: i32) -> Result<Option<Ledger>, Error> {
    let sql = ledgers_sql(false, &format!("partition = {partition}"));
    Ok(read_soon(client, &sql).await?.remove(&partition))
}

async fn read_soon(client: &Client, sql: &str) -> Result<BTreeMap<i32, Ledger>, Error> {
    let read = tokio::time::timeout(POSITION_TIMEOUT, read(client, sql));
    read.await.unwrap_or(Err(Error::TimedOut))
}

async fn read(client: &Client, sql: &str) -> Result<BTreeMap<i32, Ledger>, Error> {
    let rows: Vec<StoredLedger> = client.query(sql).fetch_all().await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let partition =
                i32::try_from(row.partition).expect("the sink stores Kafka's partition numbers");
            let ledger = Ledger {
                deltas: ledger::SumAndHigh { sum: row.deltas_sum, high: row.deltas_high },
                increments: ledger::SumAndHigh {
                    sum: row.increments_sum,
                    high: row.increments_high,
                },
                counted: row.counted,
                duplicate: row.duplicate,
                rejected: row.rejected,
                counted_increments: row.counted_increments,
                fingerprint: Fingerprint::from_bits(row.fingerprint),
                events: row.events,
            };
            (partition, ledger)
        })
        .collect())
}

fn ledgers_sql(fingerprint: bool, partitions: &str) -> String {
    let reserved = ledger::RESERVED_NAMESPACE;
    // By key, since the rows of single batches are many.
    let keys = [
        ledger::DELTAS,
        ledger::INCREMENTS,
        ledger::COUNTED,
        ledger::DUPLICATE,
        ledger::REJECTED,
        ledger::COUNTED_INCREMENTS,
    ];
    let keys = keys.map(|key| format!("'{key}'")).join(", ");
    let is = |key: &str| format!("namespace = '{reserved}' AND key = '{key}'");
    let sum_of = |key: &str| format!("sumIf(sum, {})", is(key));
    let high_of = |key: &str| format!("maxIf(high, {})", is(key));
    let counts = format!("namespace != '{reserved}'");
    let (fingerprint, events, scope) = if fingerprint {
        (
            format!("sumIf({}, {counts})", Fingerprint::SQL_ROW),
            format!("sumIf(events, {counts})"),
            String::from("1"),
        )
    } else {
        (
            String::from("toUInt64(0)"),
            String::from("toInt64(0)"),
            format!("namespace = '{reserved}' AND key IN ({keys})"),
        )
    };
    format!(
        "SELECT partition, {} AS deltas_sum, {} AS deltas_high, \
         {} AS increments_sum, {} AS increments_high, \
         {} AS counted, {} AS duplicate, {} AS rejected, {} AS counted_increments, \
         {fingerprint} AS fingerprint, {events} AS events \
         FROM {COUNTS} WHERE {partitions} AND {scope} GROUP BY partition ORDER BY partition",
        sum_of(ledger::DELTAS),
        high_of(ledger::DELTAS),
        sum_of(ledger::INCREMENTS),
        high_of(ledger::INCREMENTS),
        sum_of(ledger::COUNTED),
        sum_of(ledger::DUPLICATE),
        sum_of(ledger::REJECTED),
        sum_of(ledger::COUNTED_INCREMENTS),
    )
}
