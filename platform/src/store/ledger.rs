use std::collections::BTreeMap;
use std::time::Duration;

use clickhouse::Client;
use clickhouse::error::Error;
use tally_counts::ledger::LedgerError;
use tally_counts::{StoredOffsets, ledger};

use super::COUNTS;
use super::ledger_row::{LedgerRow, sql_is_ledger, sql_ledger_columns};

/// The query reads a few rows of each part, so ClickHouse is not answering at all if it takes
/// longer than this.
const POSITION_TIMEOUT: Duration = Duration::from_secs(30);

/// What the counts table says of one partition, all of it in one snapshot: its positions and its
/// account of the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub deltas: ledger::SumAndHigh,
    pub increments: ledger::SumAndHigh,
    /// Messages.
    pub counted: i64,
    pub duplicate: i64,
    pub rejected: i64,
    pub counted_increments: i64,
}

impl Ledger {
    /// Adds what other rows of the same partition say.
    pub(super) fn add(&mut self, other: &Ledger) {
        let add = |position: &mut ledger::SumAndHigh, other: ledger::SumAndHigh| {
            position.sum = position.sum.saturating_add(other.sum);
            position.high = position.high.max(other.high);
        };
        add(&mut self.deltas, other.deltas);
        add(&mut self.increments, other.increments);
        self.counted = self.counted.saturating_add(other.counted);
        self.duplicate = self.duplicate.saturating_add(other.duplicate);
        self.rejected = self.rejected.saturating_add(other.rejected);
        self.counted_increments = self.counted_increments.saturating_add(other.counted_increments);
    }

    /// How far the partition is stored; where it has no ledger, the default one says 0. An error if
    /// the ledger contradicts itself.
    pub fn stored_offsets(&self) -> Result<StoredOffsets, LedgerError> {
        Ok(StoredOffsets {
            deltas: self.deltas.position()?,
            increments: self.increments.position()?,
        })
    }
}

/// Reads the ledger of every partition that has one and that Kafka may have, in one scan.
pub async fn ledgers(client: &Client) -> Result<BTreeMap<i32, Ledger>, Error> {
    read(client, "1").await
}

/// Reads the ledger of one partition; `None` if it has none yet.
pub async fn ledger(client: &Client, partition: i32) -> Result<Option<Ledger>, Error> {
    Ok(read(client, &format!("partition = {partition}")).await?.remove(&partition))
}

async fn read(client: &Client, condition: &str) -> Result<BTreeMap<i32, Ledger>, Error> {
    let sql = format!(
        "SELECT partition, {} FROM {COUNTS} WHERE {condition} AND {} GROUP BY partition",
        sql_ledger_columns(),
        sql_is_ledger()
    );
    let rows = within(client.query(&sql).fetch_all::<LedgerRow>()).await?;
    Ok(rows.iter().filter_map(|row| Some((row.partition()?, Ledger::from(row)))).collect())
}

pub(super) async fn within<T>(query: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(POSITION_TIMEOUT, query).await.unwrap_or(Err(Error::TimedOut))
}
