//! What the reader asks the store: sums and ledger of one snapshot, in one scan of one table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clickhouse::{Client, Row};
use hashbrown::HashMap;
use serde::Deserialize;
use tally_counts::StoredOffsets;
use tally_counts::ledger::{self, LedgerError, RESERVED_NAMESPACE, SumAndHigh};
use tally_platform::causes::with_causes;
use tally_platform::store::{COUNTS, ledgers};

use crate::cache::Total;
use crate::counter::Counter;
use crate::counter_memory::{Snapshot, Wanted};
use crate::metrics::Metrics;
use crate::vector::Vector;

/// How long one query may take; the server gives up a little earlier, so that it does not work for
/// nobody.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_EXECUTION_TIME_S: &str = "9";

/// More than a Kafka cluster has of all topics: a table that names more is not what a sink left
/// there, and a vector of so many would take memory for nothing.
const MAX_PARTITIONS: u32 = 1 << 18;

/// Room for the names of as many counters as one query asks for, escaped.
const MAX_QUERY_BYTES: &str = "33554432";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the store does not answer: {reason}")]
    Unavailable { reason: String },
    #[error("the store does not answer within {QUERY_TIMEOUT:?}")]
    Slow,
    /// The table is not what a sink left there.
    #[error("partition {partition}: the ledger's position in {topic} is wrong")]
    Damaged { partition: u32, topic: &'static str, source: LedgerError },
    #[error("partition {partition}: the store has counts, but no positions beside them")]
    NoLedger { partition: u32 },
    #[error(
        "the store has counts of partition {partition}, and no topic has {MAX_PARTITIONS} \
         partitions"
    )]
    UnknownPartition { partition: u32 },
}

/// How far the store is in each partition, up to the last that has a ledger.
pub(crate) type Places = Vec<Result<StoredOffsets, StoreError>>;

#[derive(Clone)]
pub(crate) struct Store {
    client: Client,
    metrics: Metrics,
}

/// One counter's sums in one partition, or one row of the ledger.
#[derive(Row, Deserialize)]
struct Summed {
    partition: u32,
    namespace: String,
    key: String,
    total: i128,
    occurred: i128,
    reached: i64,
}

impl Store {
    pub(crate) fn new(client: Client, metrics: Metrics) -> Store {
        let client = client
            .with_setting("max_execution_time", MAX_EXECUTION_TIME_S)
            .with_setting("max_query_size", MAX_QUERY_BYTES);
        Store { client, metrics }
    }

    /// How far the store is.
    pub(crate) async fn vector(&self) -> Result<Vector, StoreError> {
        self.ledger().await?.vector()
    }

    /// How far the store is in each partition; one whose ledger is damaged hides no other's.
    pub(crate) async fn places(&self) -> Result<Places, StoreError> {
        self.ledger().await?.places()
    }

    async fn ledger(&self) -> Result<Scan, StoreError> {
        let ledgers = self.timed(ledgers(&self.client)).await?;
        let mut scan = Scan::default();
        for (partition, ledger) in ledgers {
            let positions =
                LedgerRows { deltas: Some(ledger.deltas), increments: Some(ledger.increments) };
            scan.ledger.insert(partition.cast_unsigned(), positions);
        }
        Ok(scan)
    }

    pub(crate) async fn snapshot(&self, wanted: Wanted<'_>) -> Result<Snapshot, StoreError> {
        let query = match wanted {
            Wanted::Counters(counters) => {
                let names = counters.iter().map(|counter| (counter.namespace(), counter.key()));
                self.client
                    .query(&sql("(namespace, key) IN ?"))
                    .bind(names.chain(LEDGER).collect::<Vec<_>>())
            }
            Wanted::Buckets(counter, buckets) => {
                let condition = "(namespace, key) IN ? OR (namespace = ? AND key = ? \
                                 AND toUInt32(bucket) >= ? AND toUInt32(bucket) < ?)";
                let query = self.client.query(&sql(condition)).bind(LEDGER.as_slice());
                let query = query.bind(counter.namespace()).bind(counter.key());
                query.bind(buckets.start).bind(buckets.end)
            }
        };
        let rows = self.timed(query.fetch_all::<Summed>()).await?;
        let mut scan = Scan::default();
        for row in rows {
            scan.take(row);
        }
        Ok(Snapshot { vector: Arc::new(scan.vector()?), totals: scan.totals })
    }

    async fn timed<T>(
        &self,
        query: impl Future<Output = Result<T, clickhouse::error::Error>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let answered = tokio::time::timeout(QUERY_TIMEOUT, query).await;
        self.metrics.queried(began.elapsed(), matches!(answered, Ok(Ok(_))));
        match answered {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(StoreError::Unavailable { reason: with_causes(&error) }),
            Err(_) => Err(StoreError::Slow),
        }
    }
}

const LEDGER: [(&str, &str); 2] =
    [(RESERVED_NAMESPACE, ledger::DELTAS), (RESERVED_NAMESPACE, ledger::INCREMENTS)];

/// Sums in 128 bits: the buckets of a counter may come to more than 64 hold, and ClickHouse would
/// wrap.
fn sql(condition: &str) -> String {
    format!(
        "SELECT partition, namespace, key, \
         sum(toInt128(sum)) AS total, sum(toInt128(events)) AS occurred, max(high) AS reached \
         FROM {COUNTS} WHERE {condition} GROUP BY partition, namespace, key"
    )
}

/// What one scan found: the ledger by partition, and the counters over all of them.
#[derive(Default)]
struct Scan {
    ledger: BTreeMap<u32, LedgerRows>,
    totals: HashMap<Counter, Total>,
}

/// The rows of one partition's ledger, as far as they were read.
#[derive(Default)]
struct LedgerRows {
    deltas: Option<SumAndHigh>,
    increments: Option<SumAndHigh>,
}

impl Scan {
    fn take(&mut self, row: Summed) {
        let positions = self.ledger.entry(row.partition).or_default();
        if row.namespace != RESERVED_NAMESPACE {
            let total =
                self.totals.entry(Counter::new(&row.namespace, &row.key)).or_insert(Total::ZERO);
            total.add_total(Total { sum: row.total, events: row.occurred });
            return;
        }
        // Differences that come to more than 64 bits are as wrong when they are cut to the largest
        // number.
        let sum = row.total.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        let stored = Some(SumAndHigh { sum, high: row.reached });
        match row.key.as_str() {
            ledger::DELTAS => positions.deltas = stored,
            ledger::INCREMENTS => positions.increments = stored,
            key => unreachable!("the query does not ask for the ledger's {key}"),
        }
    }

    /// The positions of all partitions that anything is stored of.
    fn vector(&self) -> Result<Vector, StoreError> {
        let places: Result<_, _> = self.places()?.into_iter().collect();
        Ok(Vector::new(places?))
    }

    fn places(&self) -> Result<Places, StoreError> {
        let mut places = Places::new();
        for (&partition, rows) in &self.ledger {
            if partition >= MAX_PARTITIONS {
                return Err(StoreError::UnknownPartition { partition });
            }
            // Partitions between those that have a ledger are at their beginning.
            places.resize_with(partition as usize, || Ok(StoredOffsets::default()));
            places.push(rows.place(partition));
        }
        Ok(places)
    }
}

impl LedgerRows {
    fn place(&self, partition: u32) -> Result<StoredOffsets, StoreError> {
        let (Some(deltas), Some(increments)) = (&self.deltas, &self.increments) else {
            return Err(StoreError::NoLedger { partition });
        };
        let position = |topic, stored: &SumAndHigh| {
            stored.position().map_err(|source| StoreError::Damaged { partition, topic, source })
        };
        Ok(StoredOffsets {
            deltas: position(ledger::DELTAS, deltas)?,
            increments: position(ledger::INCREMENTS, increments)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(partition: u32, namespace: &str, key: &str, total: i128, reached: i64) -> Summed {
        Summed {
            partition,
            namespace: namespace.into(),
            key: key.into(),
            total,
            occurred: 1,
            reached,
        }
    }

    fn scan(rows: impl IntoIterator<Item = Summed>) -> Scan {
        let mut scan = Scan::default();
        rows.into_iter().for_each(|row| scan.take(row));
        scan
    }

    fn ledger(partition: u32, deltas: i64, increments: i64) -> [Summed; 2] {
        [
            row(partition, RESERVED_NAMESPACE, ledger::DELTAS, deltas.into(), deltas),
            row(partition, RESERVED_NAMESPACE, ledger::INCREMENTS, increments.into(), increments),
        ]
    }

    #[test]
    fn a_scan_adds_up_a_counter_over_the_partitions() {
        let max = i128::from(i64::MAX);
        let counts = [row(0, "ns", "a", max, 0), row(2, "ns", "a", max, 0)];
        let scan = scan(ledger(0, 5, 50).into_iter().chain(ledger(2, 7, 70)).chain(counts));
        assert_eq!(scan.totals[&Counter::new("ns", "a")], Total { sum: 2 * max, events: 2 });
        assert_eq!(scan.vector().unwrap().position().to_string(), "0:50,1:0,2:70");
    }

    #[test]
    fn a_table_that_does_not_prove_itself_gives_no_position() {
        let doubled = row(1, RESERVED_NAMESPACE, ledger::DELTAS, 10, 5);
        let [_, increments] = ledger(1, 5, 50);
        let error = scan([doubled, increments]).vector().unwrap_err();
        assert!(
            matches!(error, StoreError::Damaged { partition: 1, topic: "deltas", .. }),
            "{error}"
        );

        let error = scan([row(1, "ns", "a", 3, 0)]).vector().unwrap_err();
        assert!(matches!(error, StoreError::NoLedger { partition: 1 }), "{error}");

        let error = scan(ledger(MAX_PARTITIONS, 5, 50)).vector().unwrap_err();
        assert!(matches!(error, StoreError::UnknownPartition { .. }), "{error}");
    }

    #[test]
    fn a_damaged_ledger_hides_no_other_partitions_position() {
        let doubled = row(1, RESERVED_NAMESPACE, ledger::DELTAS, 10, 5);
        let [_, increments] = ledger(1, 5, 50);
        let places = scan(ledger(2, 7, 70).into_iter().chain([doubled, increments])).places();
        let places: Vec<_> = places.unwrap().into_iter().map(Result::ok).collect();
        let place = |deltas, increments| Some(StoredOffsets { deltas, increments });
        assert_eq!(places, [place(0, 0), None, place(7, 70)]);
    }
}
