//! Counts that were changed behind Tally's back: verify says so, and in which partition.

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::installation::Installation;
use crate::model::Model;
use crate::service::Service;

/// The partition that is tampered with.
const VICTIM: i32 = 1;

/// An installation with a few stored batches, its services drained; the victim has one batch only.
async fn counted(name: &str) -> (Installation, Model) {
    let tally = Installation::new(name).await;
    let source = tally.source().await;
    let events = random_events(&mut Dice(10), 900);
    let mut model = Model::default();
    model.add_all(&events);
    source.batch(VICTIM, &events[..300]).await;
    for (events, partition) in events[300..].chunks(50).zip([0, 2].into_iter().cycle()) {
        source.batch(partition, events).await;
    }
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
    (tally, model)
}

impl Installation {
    async fn sql(&self, sql: &str) {
        self.store()
            .query_raw(sql)
            .execute()
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Verify finds the victim, names a finding that contains `finding`, and finds nothing else.
    async fn expect_mismatch(&self, finding: &str) {
        let ended = self.verify().await.expect_code(1);
        let findings: Vec<&str> =
            ended.stdout.lines().filter(|line| line.starts_with("partition ")).collect();
        let victim = format!("partition {VICTIM}: ");
        assert!(findings.iter().all(|line| line.starts_with(&victim)), "{}", ended.stdout);
        assert!(findings.iter().any(|line| line.contains(finding)), "{}", ended.stdout);
        assert!(ended.stdout.contains("1 of 3 partitions do NOT agree"), "{}", ended.stdout);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_the_partition_of_a_row_that_was_added_and_agrees_once_it_is_taken_away() {
    let (tally, _) = counted("added").await;
    let insert = |sum: i64| {
        format!(
            "INSERT INTO counts (partition, namespace, key, bucket, sum, events, high) \
             VALUES ({VICTIM}, 'web', 'key-1', toDateTime(1767225600, 'UTC'), {sum}, 0, 0)"
        )
    };
    tally.sql(&insert(1)).await;
    tally.expect_mismatch("the counts are not what Kafka comes to").await;
    tally.sql(&insert(-1)).await;
    tally.verify().await.expect_code(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_the_partition_of_a_row_that_was_altered_or_deleted() {
    let (tally, _) = counted("altered").await;
    tally.sql("OPTIMIZE TABLE counts FINAL").await;
    let row = format!(
        "partition = {VICTIM} AND (namespace, key, bucket) IN (\
         SELECT namespace, key, bucket FROM counts \
         WHERE partition = {VICTIM} AND namespace != '__tally' \
         ORDER BY namespace, key, bucket LIMIT 1)"
    );
    let update = |sum: &str| {
        format!("ALTER TABLE counts UPDATE sum = {sum} WHERE {row} SETTINGS mutations_sync = 2")
    };
    tally.sql(&update("sum + 1")).await;
    tally.expect_mismatch("the counts are not what Kafka comes to").await;
    tally.sql(&update("sum - 1")).await;
    tally.verify().await.expect_code(0);
    tally.sql(&format!("ALTER TABLE counts DELETE WHERE {row} SETTINGS mutations_sync = 2")).await;
    tally.expect_mismatch("events of the counts").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_was_stored_twice_is_found_by_verify_and_stops_its_partition_alone() {
    let (mut tally, mut model) = counted("twice").await;
    tally.sql(&format!("INSERT INTO counts SELECT * FROM counts WHERE partition = {VICTIM}")).await;
    tally.expect_mismatch("a batch was stored twice").await;

    tally.allow("the partition stops; the others go on");
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    services[0].ready().await;
    services[1].logs("the partition stops; the others go on").await;
    let reasons = services[1].readiness().await.expect_err("not ready with a broken partition");
    assert!(reasons.contains(&format!("partitions {{{VICTIM}}} stopped")), "{reasons}");
    let events = random_events(&mut Dice(11), 50);
    tally.source().await.batch(0, &events).await;
    model.add_all(&events);
    services[1].counts_beyond(0.0, "tally_sink_batches_total", "").await;
    tally.expect_mismatch("a batch was stored twice").await;
}
