use clickhouse::Row;
use serde::Deserialize;
use tally_counts::ledger;

use super::ledger::Ledger;

/// What some rows of one partition come to: those of the ledger, or counts of one range.
#[derive(Row, Deserialize)]
pub(super) struct SummedRow {
    partition: u32,
    deltas_sum: i64,
    deltas_high: i64,
    increments_sum: i64,
    increments_high: i64,
    counted: i64,
    duplicate: i64,
    rejected: i64,
    counted_increments: i64,
    /// The range of the counts; -1 for the ledger.
    pub(super) range: i32,
    pub(super) fingerprint: [u8; 32],
    pub(super) total_events: i128,
}

impl SummedRow {
    pub(super) fn partition(&self) -> i32 {
        // Kafka's numbers have 31 bits: a larger one is of a row that no sink wrote.
        i32::try_from(self.partition).unwrap_or(i32::MAX)
    }
}

impl From<&SummedRow> for Ledger {
    fn from(row: &SummedRow) -> Ledger {
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
    let keys = [
        ledger::DELTAS,
        ledger::INCREMENTS,
        ledger::COUNTED,
        ledger::DUPLICATE,
        ledger::REJECTED,
        ledger::COUNTED_INCREMENTS,
    ];
    let keys = keys.map(|key| format!("'{key}'")).join(", ");
    format!("namespace = '{}' AND key IN ({keys})", ledger::RESERVED_NAMESPACE)
}

/// The columns of [`SummedRow`] that are about the ledger.
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
