use clickhouse::Row;
use serde::Deserialize;
use tally_counts::ledger;

use super::ledger::Ledger;

/// What the ledger's rows of one partition come to.
#[derive(Row, Deserialize)]
pub(super) struct LedgerRow {
    partition: u32,
    deltas_sum: i64,
    deltas_high: i64,
    increments_sum: i64,
    increments_high: i64,
    counted: i64,
    duplicate: i64,
    rejected: i64,
    counted_increments: i64,
}

impl LedgerRow {
    pub(super) fn partition(&self) -> Option<i32> {
        kafka_partition(self.partition)
    }
}

/// A partition as Kafka numbers it, in 31 bits; `None` where it is larger, in a row that no sink
/// wrote. Such rows belong to no partition's counts, and `unknown_partitions` finds them.
pub(super) fn kafka_partition(partition: u32) -> Option<i32> {
    i32::try_from(partition).ok()
}

/// The ledger's keys, but for those of single batches.
pub(super) const LEDGER_KEYS: [&str; 6] = [
    ledger::DELTAS,
    ledger::INCREMENTS,
    ledger::COUNTED,
    ledger::DUPLICATE,
    ledger::REJECTED,
    ledger::COUNTED_INCREMENTS,
];

impl From<&LedgerRow> for Ledger {
    fn from(row: &LedgerRow) -> Ledger {
        Ledger {
            deltas: ledger::SumAndHigh { sum: row.deltas_sum, high: row.deltas_high },
            increments: ledger::SumAndHigh { sum: row.increments_sum, high: row.increments_high },
            counted: row.counted,
            duplicate: row.duplicate,
            rejected: row.rejected,
            counted_increments: row.counted_increments,
        }
    }
}

/// Whether a row is of the ledger. By key, since the rows of single batches are many.
pub(super) fn sql_is_ledger() -> String {
    format!("namespace = '{}' AND key IN ({})", ledger::RESERVED_NAMESPACE, sql_ledger_keys())
}

pub(super) fn sql_ledger_keys() -> String {
    LEDGER_KEYS.map(|key| format!("'{key}'")).join(", ")
}

/// The columns of [`LedgerRow`] but the partition.
pub(super) fn sql_ledger_columns() -> String {
    let is = |key: &str| format!("namespace = '{}' AND key = '{key}'", ledger::RESERVED_NAMESPACE);
    // Sums have 128 bits. One that is beyond 64 must not be cut down to one that looks right. (Not
    // with `least` and `greatest`: ClickHouse 26.7 answers wrong once it has compiled both over
    // Int128, which it does the fourth time.)
    let sum_of = |key: &str| {
        format!(
            "ifNull(accurateCastOrNull(sumIf(sum, {}), 'Int64'), toInt64({}))",
            is(key),
            i64::MAX
        )
    };
    let high_of = |key: &str| format!("maxIf(high, {})", is(key));
    [
        (sum_of(ledger::DELTAS), "deltas_sum"),
        (high_of(ledger::DELTAS), "deltas_high"),
        (sum_of(ledger::INCREMENTS), "increments_sum"),
        (high_of(ledger::INCREMENTS), "increments_high"),
        (sum_of(ledger::COUNTED), "counted"),
        (sum_of(ledger::DUPLICATE), "duplicate"),
        (sum_of(ledger::REJECTED), "rejected"),
        (sum_of(ledger::COUNTED_INCREMENTS), "counted_increments"),
    ]
    .map(|(value, name)| format!("{value} AS {name}"))
    .join(", ")
}
