//! An installation that the first version of Tally made: its table, whose sums have 64 bits, is
//! moved on, and its bookmarks and rules go on to hold.

use tally_counts::IdScope;
use tally_platform::config::Config;
use tally_platform::store::{self, TableRules};

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::installation::Installation;
use crate::model::Model;
use crate::service::Service;

/// What `tally init` of that version made.
const TABLE: &str = "CREATE TABLE counts
(
    partition UInt32 COMMENT 'partition of the Kafka topic that the increments came from',
    namespace LowCardinality(String),
    key String,
    bucket DateTime('UTC') COMMENT 'start of the time bucket of the events',
    sum Int64 COMMENT 'what the increments came to' CODEC(T64, LZ4),
    events Int64 COMMENT 'how many increments there were; 1 for each ledger row' CODEC(T64, LZ4),
    high SimpleAggregateFunction(max, Int64)
        COMMENT 'ledger rows only: the highest offset reached' CODEC(T64, LZ4)
)
ENGINE = SummingMergeTree
PARTITION BY partition
ORDER BY (namespace, key, bucket)
TTL bucket + INTERVAL 30 DAY DELETE WHERE namespace = '__tally' AND startsWith(key, 'batch:')
SETTINGS non_replicated_deduplication_window = 10000, min_bytes_for_wide_part = 33554432
COMMENT 'tally: bucket_seconds=60 max_future_seconds=86400 \
     horizon_offsets=1000000 max_ids=1000000'";

impl Installation {
    /// Puts what is stored into a table of the first version.
    async fn turn_back(&self) {
        self.sql("RENAME TABLE counts TO newer").await;
        self.sql(TABLE).await;
        self.sql(
            "INSERT INTO counts SELECT partition, namespace, key, bucket, toInt64(sum), events, \
             high FROM newer",
        )
        .await;
        self.sql("DROP TABLE newer").await;
        self.sql(
            "CREATE OR REPLACE VIEW counters AS SELECT namespace, key, bucket, \
             sum(counts.sum) AS value, sum(counts.events) AS events FROM counts AS counts \
             WHERE namespace != '__tally' GROUP BY namespace, key, bucket",
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_with_sums_of_64_bits_is_moved_on_exactly_and_counted_on() {
    let mut tally = Installation::bare("older");
    tally.configure(by_the_rules_of_then);
    tally.tally(&["init"]).await.expect_code(0);
    let source = tally.source().await;
    let mut events = random_events(&mut Dice(21), 600);
    events[0].delta = i64::MAX;
    events[2].at_ms /= 1000;
    events[1].delta = i64::MIN;
    let mut model = Model::default();
    model.add_all(&events);
    source.spread(&events, 50).await;
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
    tally.turn_back().await;

    let refused = tally.verify().await.expect_code(69).stderr;
    assert!(refused.contains("is of format 1") && refused.contains("tally init"), "{refused}");
    let made = tally.tally(&["init"]).await.expect_code(0).stdout;
    assert!(made.contains("moved on from format 1 to 2"), "{made}");
    model.expect(&tally.totals().await);
    tally.verify().await.expect_code(0);
    // What ended half-way is gone on with, whatever was done already: the comment changes last.
    tally
        .sql(
            "ALTER TABLE counts MODIFY COMMENT 'tally: bucket_seconds=60 \
             max_future_seconds=86400 horizon_offsets=1000000 max_ids=1000000'",
        )
        .await;
    tally.tally(&["init"]).await.expect_code(0);
    let again = tally.tally(&["init"]).await.expect_code(0).stdout;
    assert!(!again.contains("moved on"), "{again}");
    let table = store::rules(tally.store()).await.expect("the store answers");
    let rules = tally.config.rules();
    assert_eq!(table, Some(TableRules { format: TableRules::FORMAT, rules }));

    let more = random_events(&mut Dice(22), 200);
    model.add_all(&more);
    source.spread(&more, 50).await;
    events[0].at_ms += 1;
    source.single(0, &events[0]).await;
    model.add(&events[0]);
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_whose_ids_are_of_partitions_is_not_counted_into_by_other_rules() {
    let mut tally = Installation::bare("scope");
    tally.configure(by_the_rules_of_then);
    tally.tally(&["init"]).await.expect_code(0);
    tally.turn_back().await;
    let mut refused = async |change: fn(&mut Config)| {
        tally.configure(change);
        tally.tally(&["init"]).await.expect_code(69).stderr
    };
    let of_ids = refused(|config| config.duplicates.ids_within = IdScope::Counter).await;
    assert!(of_ids.contains("ids_within=partition"), "{of_ids}");
    let advice = ": to count on as before, set duplicates.ids_within = \"partition\"";
    assert!(of_ids.contains(&format!("{advice}\n")), "{of_ids}");
    let of_both = refused(|config| config.counts = Config::default().counts).await;
    let advice = format!("{advice} and counts.min_event_time = \"1970-01-01T00:00:00Z\"\n");
    assert!(of_both.contains(&advice), "{of_both}");
    let of_more = refused(|config| config.counts.max_future_seconds = 7).await;
    assert!(!of_more.contains("to count on as before"), "{of_more}");
}

/// Ids counted within partitions, and events had no earliest time.
fn by_the_rules_of_then(config: &mut Config) {
    config.duplicates.ids_within = IdScope::Partition;
    config.counts.min_event_time = "1970-01-01T00:00:00Z".parse().expect("it is a time");
}
