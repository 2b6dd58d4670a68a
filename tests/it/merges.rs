//! What the table does to rows, and what ClickHouse makes of the fingerprint.

use std::collections::BTreeSet;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use tally_counts::{
    Fingerprint, KeyedFingerprint, KeyedFingerprinter, QuickFingerprint, Salt, ledger,
};
use tally_platform::store::{self, PartCounts};

use crate::dice::Dice;
use crate::installation::Installation;
use crate::wait::until;

#[derive(Clone, Debug, Row, Serialize, Deserialize)]
struct CountsRow {
    partition: u32,
    namespace: String,
    key: String,
    bucket: u32,
    sum_low: u64,
    sum_high: i64,
    events: i64,
    high: i64,
}

impl CountsRow {
    /// As the sink's insert has ClickHouse do it.
    fn with_sum(self, sum: i64) -> CountsRow {
        CountsRow { sum_low: (sum & 0xffff_ffff).cast_unsigned(), sum_high: sum >> 32, ..self }
    }

    fn sum(&self) -> i64 {
        self.sum_high << 32 | self.sum_low.cast_signed()
    }
}

fn random_row(dice: &mut Dice) -> CountsRow {
    let namespace = [dice.text(), String::from("a")][dice.roll(2)].clone();
    CountsRow {
        partition: 7,
        namespace,
        key: dice.text(),
        bucket: dice.bits() as u32,
        sum_low: 0,
        sum_high: 0,
        events: 1,
        high: 0,
    }
    .with_sum(dice.long())
}

impl Installation {
    async fn insert(&self, rows: &[CountsRow]) {
        let mut insert =
            self.store().insert::<CountsRow>("counts").await.expect("an insert begins");
        for row in rows {
            insert.write(row).await.expect("a row is written");
        }
        insert.end().await.expect("the rows are stored");
    }

    /// The names of a partition's parts: a part that is written anew gets another.
    async fn parts_of(&self, partition: u32) -> Vec<String> {
        let parts = "SELECT name FROM system.parts \
                     WHERE active AND database = currentDatabase() AND table = 'counts' \
                     AND partition = ? ORDER BY name";
        let parts = self.store().query(parts).bind(partition.to_string());
        parts.fetch_all::<String>().await.expect("the parts are listed")
    }

    pub(crate) async fn merge(&self) {
        self.store()
            .query("OPTIMIZE TABLE counts FINAL")
            .execute()
            .await
            .expect("the table is merged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fingerprint_is_the_same_in_clickhouse_before_and_after_merges() {
    let tally = Installation::new("fingerprint").await;
    let mut dice = Dice(11);
    let mut rows: Vec<CountsRow> = (0..2_000).map(|_| random_row(&mut dice)).collect();
    // Half of them again, with other sums: these merge.
    let again: Vec<CountsRow> =
        rows[..1_000].iter().map(|row| row.clone().with_sum(dice.long())).collect();
    for rows in [&rows, &again] {
        tally.insert(rows).await;
    }
    rows.extend(again);

    let one_by_one = format!(
        "SELECT {} AS fingerprint, namespace, key, toUInt32(bucket), toInt64(sum) FROM counts",
        Fingerprint::sql_row()
    );
    let found: Vec<(u64, String, String, u32, i64)> =
        tally.store().query(&one_by_one).fetch_all().await.expect("rows");
    assert!(found.len() >= 2_000, "{} rows", found.len());
    for (fingerprint, namespace, key, bucket, sum) in found {
        let ours = Fingerprint::of_row(&namespace, &key, bucket, sum);
        assert_eq!(
            Fingerprint::from_bits(fingerprint),
            ours,
            "{namespace:?} {key:?} {bucket} {sum}"
        );
    }

    let salt = Salt::from_bytes(std::array::from_fn(|at| (at as u8).wrapping_mul(11)));
    let mut fingerprinter = KeyedFingerprinter::new(&salt);
    let mut expected = vec![KeyedFingerprint::ZERO; KeyedFingerprint::RANGES];
    for row in &rows {
        let CountsRow { namespace, key, bucket, events, .. } = row;
        let row = fingerprinter.row(namespace, key, *bucket, row.sum(), *events);
        expected[row.range] += row.fingerprint;
    }
    let stored = async || {
        let stored = store::stored_counts(tally.store(), &salt, "1").await;
        let stored = stored.expect("the table can be read").remove(&7).expect("it has rows");
        let whole = stored.whole.expect("all rows are read");
        (whole.fingerprints, whole.events)
    };
    assert!(stored().await == (expected.clone(), 3_000));
    tally.merge().await;
    assert!(stored().await == (expected, 3_000));
}

/// Looked at often: ClickHouse compiles an expression that it has computed a few times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_fingerprint_is_the_same_in_clickhouse_part_by_part() {
    const PARTITION: i32 = 7;
    let tally = Installation::new("quick").await;
    let mut dice = Dice(12);
    let salt = Salt::from_bytes(std::array::from_fn(|at| (at as u8).wrapping_mul(23)));
    let (none, all) = (BTreeSet::new(), BTreeSet::from([PARTITION]));
    let mut expected = QuickFingerprint::ZERO;
    let mut rows: Vec<CountsRow> = (0..500).map(|_| random_row(&mut dice)).collect();
    let mut parts = PartCounts::new(&salt);
    for round in 0..8 {
        // The same keys again, with other sums: these merge.
        rows = rows.into_iter().map(|row| row.with_sum(dice.long())).collect();
        tally.insert(&rows).await;
        for row in &rows {
            let CountsRow { namespace, key, bucket, events, .. } = row;
            expected += salt.quick_fingerprint(namespace, key, *bucket, row.sum(), *events);
        }
        if round % 3 == 2 {
            tally.merge().await;
        }
        let mut read = async |whole: Option<&BTreeSet<i32>>| {
            let stored = parts.read(tally.store(), whole).await.expect("the table can be read");
            stored[&PARTITION].clone()
        };
        let first = read((round > 0).then_some(&none)).await;
        assert_eq!((first.quick, first.whole.is_some()), (expected, round == 0), "{round}");
        let whole = read(Some(&all)).await;
        let events = whole.whole.map(|whole| whole.events);
        assert_eq!((whole.quick, events), (expected, Some(500 * (round + 1))), "{round}");
        let anew = PartCounts::new(&salt).read(tally.store(), Some(&none)).await;
        let anew = anew.expect("the table can be read")[&PARTITION].clone();
        assert_eq!((anew.quick, anew.whole.is_some()), (expected, false), "{round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_keep_the_ledger_and_counters_that_come_to_zero() {
    let tally = Installation::new("merges").await;
    let row = |namespace: &str, key: &str, sum, high| {
        CountsRow {
            partition: 0,
            namespace: namespace.to_owned(),
            key: key.to_owned(),
            bucket: 0,
            sum_low: 0,
            sum_high: 0,
            events: 1,
            high,
        }
        .with_sum(sum)
    };
    // Three batches: their differences add up to the highest offset, in whatever order they are
    // merged.
    for (difference, high) in [(5, 5), (7, 12), (1, 13)] {
        tally
            .insert(&[
                row(ledger::RESERVED_NAMESPACE, ledger::DELTAS, difference, high),
                row(
                    "web",
                    "up and down",
                    [3, -4, 1][usize::from(high > 5) + usize::from(high > 12)],
                    0,
                ),
            ])
            .await;
    }
    tally.merge().await;

    let rows: Vec<(String, String, i64, i64, i64)> = tally
        .store()
        .query("SELECT namespace, key, toInt64(sum), events, high FROM counts ORDER BY namespace")
        .fetch_all()
        .await
        .expect("rows");
    let expected =
        [(ledger::RESERVED_NAMESPACE, ledger::DELTAS, 13, 3, 13), ("web", "up and down", 0, 3, 0)]
            .map(|(namespace, key, sum, events, high)| {
                (namespace.to_owned(), key.to_owned(), sum, events, high)
            });
    assert_eq!(rows, expected);
    let ledgers = store::ledgers(tally.store()).await.expect("the ledger can be read");
    assert_eq!(ledgers[&0].deltas.position(), Ok(13));
}

/// The ledger's rows have the bucket 0, and counters may be of years ago: neither may look to
/// ClickHouse as if it had expired, or each look for rows that have would write the parts anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_old_rows_of_batches_expires_and_no_part_is_rewritten_for_the_rest() {
    const OLD: u32 = 1_300_000_000;
    let tally = Installation::new("expiring").await;
    let now = u32::try_from(jiff::Timestamp::now().as_second()).expect("it is before 2106");
    let row = |partition, namespace: &str, key: &str, bucket| {
        let (namespace, key) = (namespace.to_owned(), key.to_owned());
        let row = CountsRow {
            partition,
            namespace,
            key,
            bucket,
            sum_low: 0,
            sum_high: 0,
            events: 1,
            high: 0,
        };
        row.with_sum(5)
    };
    let kept = [
        row(1, "web", "old", OLD),
        row(1, "web", "of 1970", 60),
        row(1, ledger::RESERVED_NAMESPACE, "deltas", 0),
        row(1, ledger::RESERVED_NAMESPACE, "batch:2", now),
    ];
    tally.insert(&kept).await;
    let before = tally.parts_of(1).await;
    // ClickHouse takes first what expired first, so the others would have had their turn.
    tally.sql("ALTER TABLE counts MODIFY SETTING merge_with_ttl_timeout = 1").await;
    tally
        .insert(&[row(2, "web", "old", OLD), row(2, ledger::RESERVED_NAMESPACE, "batch:1", OLD)])
        .await;
    until("the old batch's row to expire", async || {
        let left = "SELECT count() FROM counts WHERE partition = 2";
        match tally.store().query(left).fetch_one::<u64>().await {
            Ok(1) => Ok(()),
            left => Err(format!("{left:?} rows are left")),
        }
    })
    .await;
    assert_eq!(tally.parts_of(1).await, before, "what does not expire is not written anew");
    let left = tally.store().query("SELECT count() FROM counts WHERE partition = 1");
    assert_eq!(left.fetch_one::<u64>().await.expect("a number"), kept.len() as u64);
}
