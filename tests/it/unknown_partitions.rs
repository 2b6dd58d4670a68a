//! Rows in ClickHouse of partitions that Kafka does not have, which somebody inserted by hand: the
//! counts of all partitions that there are go on, and the rows are named.

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::installation::Installation;
use crate::reading::{log_end, read_all};
use crate::service::Service;
use crate::tampering::counted;

/// Kafka has three partitions here, and none in the world has a number beyond 31 bits.
const UNKNOWN: [u32; 5] = [3, 9, 2_147_483_647, 2_147_483_648, 4_294_967_295];

const TOLD: &str = "ClickHouse has rows of partitions that Kafka does not have";
const GONE: &str = "ClickHouse has no rows any more of partitions that Kafka does not have";

impl Installation {
    /// Counts of a counter that is counted in Kafka's partitions too, and halves of a ledger.
    async fn insert_unknown(&self) {
        for partition in UNKNOWN {
            let columns = "partition, namespace, key, bucket, sum_low, sum_high, events, high";
            for row in
                ["'web', 'key-0', 1767225600, 1, 0, 1, 0", "'__tally', 'deltas', 0, 7, 0, 1, 9"]
            {
                let row = format!("INSERT INTO counts ({columns}) VALUES ({partition}, {row})");
                self.sql(&row).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_partitions_that_kafka_does_not_have_are_named_and_disturb_no_other() {
    let (mut tally, mut model) = counted("unknown_partitions").await;
    tally.allow(TOLD);
    let kinds = [Service::Aggregator, Service::Sink, Service::Reader];
    let mut early = kinds.map(|kind| tally.start(kind, "early"));
    early[2].ready().await;
    tally.insert_unknown().await;
    // Some services see the rows appear, and others find them at their start.
    for service in &early[1..] {
        service.logs(TOLD).await;
    }
    early[1].terminate().await;
    let mut sink = tally.start(Service::Sink, "late");
    let mut reader = tally.start(Service::Reader, "late");
    reader.ready().await;
    sink.ready().await;
    let events = random_events(&mut Dice(20), 120);
    tally.source().await.spread(&events, 20).await;
    model.add_all(&events);
    tally.caught_up().await;
    let expected: Vec<_> = model.counters().into_values().collect();
    let end = log_end(&tally).await;
    for reader in [&early[2], &reader] {
        assert_eq!(read_all(reader, &model, &end).await, expected);
        reader.readiness().await.expect("it reads every partition that there is");
        reader.logs(&format!("{UNKNOWN:?}")).await;
    }
    sink.logs(&format!("{UNKNOWN:?}")).await;

    let said = tally.verify().await.expect_code(1).stdout;
    let found: Vec<&str> = said.lines().filter(|line| line.starts_with("partition ")).collect();
    let due = UNKNOWN.map(|partition| {
        format!(
            "partition {partition}: ClickHouse has rows of it, but Kafka has 3 partitions only: \
             no sink wrote them"
        )
    });
    assert_eq!(found, due, "{said}");
    assert!(said.contains("5 of 8 partitions do NOT agree"), "{said}");

    for partition in UNKNOWN {
        tally.sql(&format!("ALTER TABLE counts DROP PARTITION {partition}")).await;
    }
    tally.prove(&model).await;
    sink.logs(GONE).await;
    reader.logs(GONE).await;
    sink.terminate().await;
    reader.terminate().await;
    early[0].terminate().await;
    early[2].terminate().await;
}

/// `watch` reads only new parts after its first round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watch_names_rows_of_partitions_that_kafka_does_not_have_until_they_are_gone() {
    let (mut tally, _) = counted("unknown_watched").await;
    tally.configure(|config| config.reconciler.watch_interval_ms = 300);
    tally.allow("the counts are not Kafka's");
    let mut watch = tally.start(Service::Watch, "a");
    watch.ready().await;
    tally.insert_unknown().await;
    watch.logs("\"partition\":4294967295").await;
    let reasons = watch.readiness().await.expect_err("ClickHouse does not agree");
    assert!(
        reasons.contains("in partitions 3, 9, 2147483647, 2147483648, 4294967295"),
        "{reasons}"
    );
    for partition in UNKNOWN {
        tally.sql(&format!("ALTER TABLE counts DROP PARTITION {partition}")).await;
    }
    watch.ready().await;
    for partition in UNKNOWN {
        let of = format!("partition=\"{partition}\"");
        assert_eq!(watch.metric("tally_reconciler_mismatch", &of).await, Ok(0.0));
    }
    watch.terminate().await;
}
