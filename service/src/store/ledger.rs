use std::collections::BTreeMap;

use clickhouse::{Client, Row};
use serde::Deserialize;
use tally_counts::{Fingerprint, ledger};

use super::COUNTS;

/// What the table says of one partition: its positions, its accounting, and the fingerprint of its counts, all of one snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    pub deltas: ledger::Stored,
    pub increments: ledger::Stored,
    /// Messages.
    pub counted: i64,
    pub duplicate: i64,
    pub rejected: i64,
    pub counted_increments: i64,
    /// Of the counts themselves; only where they were asked for, since they take the whole partition to read.
    pub fingerprint: Fingerprint,
    pub events: i64,
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

/// Reads the ledger of every partition that has one, in one scan; with `fingerprint`, the counts' too.
pub async fn ledgers(
    client: &Client,
    fingerprint: bool,
) -> Result<BTreeMap<i32, Ledger>, clickhouse::error::Error> {
    let rows: Vec<StoredLedger> = client.query(&ledgers_sql(fingerprint)).fetch_all().await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let partition = i32::try_from(row.partition).expect("the sink stores Kafka's partition numbers");
            let ledger = Ledger {
                deltas: ledger::Stored { sum: row.deltas_sum, high: row.deltas_high },
                increments: ledger::Stored { sum: row.increments_sum, high: row.increments_high },
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

fn ledgers_sql(fingerprint: bool) -> String {
    let reserved = ledger::RESERVED_NAMESPACE;
    let is = |key: &str| format!("namespace = '{reserved}' AND key = '{key}'");
    let sum_of = |key: &str| format!("sumIf(sum, {})", is(key));
    let high_of = |key: &str| format!("maxIf(high, {})", is(key));
    let counts = format!("namespace != '{reserved}'");
    let (fingerprint, events, scope) = match fingerprint {
        true => (
            format!("sumIf({}, {counts})", Fingerprint::SQL_ROW),
            format!("sumIf(events, {counts})"),
            String::from("1"),
        ),
        false => {
            (String::from("toUInt64(0)"), String::from("toInt64(0)"), format!("namespace = '{reserved}'"))
        }
    };
    format!(
        "SELECT partition, {} AS deltas_sum, {} AS deltas_high, {} AS increments_sum, {} AS increments_high, \
         {} AS counted, {} AS duplicate, {} AS rejected, {} AS counted_increments, {fingerprint} AS fingerprint, {events} AS events \
         FROM {COUNTS} WHERE {scope} GROUP BY partition ORDER BY partition",
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
