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
use tally_platform::store::{COUNTS, ledgers, unknown_partitions};

use crate::cache::Total;
use crate::counter::Counter;
use crate::counter_memory::{Snapshot, Wanted};
use crate::metrics::Metrics;
use crate::vector::{Vector, number};

/// How long one query may take; the server gives up a little earlier, so that it does not work for
/// nobody.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_EXECUTION_TIME_S: &str = "9";

/// More than a Kafka cluster has of all topics: rows of a partition beyond are not what a sink left
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

    /// How far the store is; the topic has so many partitions, as far as is known.
    pub(crate) async fn vector(&self, partitions: usize) -> Result<Vector, StoreError> {
        self.ledger(partitions).await?.vector()
    }

    /// How far the store is in each partition; one whose ledger is damaged hides no other's.
    pub(crate) async fn places(&self, partitions: usize) -> Result<Places, StoreError> {
        Ok(self.ledger(partitions).await?.places())
    }

    /// The partitions beyond those of the topic that the store has rows of.
    pub(crate) async fn unknown_partitions(
        &self,
        partitions: usize,
    ) -> Result<Vec<u32>, StoreError> {
        self.timed(unknown_partitions(&self.client, number(partitions))).await
    }

    async fn ledger(&self, partitions: usize) -> Result<Scan, StoreError> {
        let ledgers = self.timed(ledgers(&self.client)).await?;
        let mut scan = Scan::new(partitions);
        for (partition, ledger) in ledgers {
            let positions =
                LedgerRows { deltas: Some(ledger.deltas), increments: Some(ledger.increments) };
            scan.ledger.insert(partition.cast_unsigned(), positions);
        }
        Ok(scan)
    }

    pub(crate) async fn snapshot(
        &self,
        wanted: Wanted<'_>,
        partitions: usize,
    ) -> Result<Snapshot, StoreError> {
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
        let mut scan = Scan::new(partitions);
        for row in rows {
            scan.take(row);
        }
        Ok(Snapshot { vector: Arc::new(scan.vector()?), totals: scan.into_totals() })
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
///
/// Rows of a partition that the topic is not known to have are a sink's if they have a whole
/// ledger: the partition was added just then. All others were written by hand, and are passed over.
struct Scan {
    /// The topic has so many, as far as is known.
    partitions: u32,
    ledger: BTreeMap<u32, LedgerRows>,
    totals: HashMap<Counter, Total>,
    /// Counters in partitions beyond those that are known.
    beyond: Vec<Summed>,
}

/// The rows of one partition's ledger, as far as they were read.
#[derive(Default)]
struct LedgerRows {
    deltas: Option<SumAndHigh>,
    increments: Option<SumAndHigh>,
}

impl Scan {
    fn new(partitions: usize) -> Scan {
        Scan {
            partitions: number(partitions).cast_unsigned(),
            ledger: BTreeMap::new(),
            totals: HashMap::new(),
            beyond: Vec::new(),
        }
    }

    fn take(&mut self, row: Summed) {
        if row.namespace != RESERVED_NAMESPACE && row.partition >= self.partitions {
            self.beyond.push(row);
            return;
        }
        let positions = self.ledger.entry(row.partition).or_default();
        if row.namespace != RESERVED_NAMESPACE {
            add_to(&mut self.totals, &row);
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
        let places: Result<_, _> = self.places().into_iter().collect();
        Ok(Vector::new(places?))
    }

    fn places(&self) -> Places {
        let mut places = Places::new();
        for (&partition, rows) in &self.ledger {
            if self.is_by_hand(partition) {
                continue;
            }
            // Partitions between those that have a ledger are at their beginning.
            places.resize_with(partition as usize, || Ok(StoredOffsets::default()));
            places.push(rows.place(partition));
        }
        places
    }

    /// Whether no sink wrote what there is of the partition.
    fn is_by_hand(&self, partition: u32) -> bool {
        let has_place = || {
            let rows = self.ledger.get(&partition);
            rows.is_some_and(|rows| rows.place(partition).is_ok())
        };
        partition >= self.partitions && (partition >= MAX_PARTITIONS || !has_place())
    }

    fn into_totals(mut self) -> HashMap<Counter, Total> {
        for row in std::mem::take(&mut self.beyond) {
            if !self.is_by_hand(row.partition) {
                add_to(&mut self.totals, &row);
            }
        }
        self.totals
    }
}

fn add_to(totals: &mut HashMap<Counter, Total>, row: &Summed) {
    let total = totals.entry(Counter::new(&row.namespace, &row.key)).or_insert(Total::ZERO);
    total.add_total(Total { sum: row.total, events: row.occurred });
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

    /// A scan where the topic has three partitions.
    fn scan(rows: impl IntoIterator<Item = Summed>) -> Scan {
        let mut scan = Scan::new(3);
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
        assert_eq!(scan.vector().unwrap().position().to_string(), "0:50,1:0,2:70");
        assert_eq!(scan.into_totals()[&Counter::new("ns", "a")], Total { sum: 2 * max, events: 2 });
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
    }

    #[test]
    fn what_was_written_by_hand_of_an_unknown_partition_is_passed_over_and_an_added_one_is_not() {
        let [half, _] = ledger(4, 5, 50);
        let rows = ledger(0, 5, 50).into_iter().chain(ledger(3, 7, 70)).chain([half]);
        let rows = rows.chain(ledger(MAX_PARTITIONS, 5, 50)).chain(ledger(u32::MAX, 5, 50));
        let counts = [0, 3, 4, 9, MAX_PARTITIONS, u32::MAX].map(|p| row(p, "ns", "a", 1, 0));
        let scan = scan(rows.chain(counts));
        assert_eq!(scan.vector().unwrap().position().to_string(), "0:50,1:0,2:0,3:70");
        assert_eq!(scan.into_totals()[&Counter::new("ns", "a")], Total { sum: 2, events: 2 });
    }

    #[test]
    fn a_damaged_ledger_hides_no_other_partitions_position() {
        let doubled = row(1, RESERVED_NAMESPACE, ledger::DELTAS, 10, 5);
        let [_, increments] = ledger(1, 5, 50);
        let places = scan(ledger(2, 7, 70).into_iter().chain([doubled, increments])).places();
        let places: Vec<_> = places.into_iter().map(Result::ok).collect();
        let place = |deltas, increments| Some(StoredOffsets { deltas, increments });
        assert_eq!(places, [place(0, 0), None, place(7, 70)]);
    }
}
