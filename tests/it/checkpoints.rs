//! Checkpoints: what was proven once stays proven when the log before it is gone.

use std::path::Path;

use rdkafka::admin::AdminOptions;
use rdkafka::producer::FutureRecord;
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};
use tally_schemas::{Increment, encode, wire};

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::run::Ended;
use crate::service::{Service, ServiceProcess};
use crate::source::Source;
use crate::topics;

const AT_MS: i64 = 1_767_225_600_000;
const PARTITIONS: i32 = 3;

/// An installation that has a key, and its services.
async fn with_key(name: &str) -> (Installation, [ServiceProcess; 2]) {
    let mut tally = Installation::bare(name);
    let key_file = tally.config_file().with_file_name("checkpoints.pem");
    tally.configure(|config| config.reconciler.key_file = Some(key_file));
    let made = tally.tally(&["init"]).await.expect_code(0);
    assert!(made.stdout.contains("checkpoints.pem: made, public key"), "{}", made.stdout);
    let services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    (tally, services)
}

async fn send(source: &Source, model: &mut Model, seed: u64) {
    let events = random_events(&mut Dice(seed), 300);
    model.add_all(&events);
    for (events, partition) in events.chunks(50).zip((0..PARTITIONS).cycle()) {
        source.batch(partition, events).await;
    }
}

async fn send_with_id(source: &Source, event: &Event, id: &str) {
    let increment = Increment { id: Some(id), ..event.increment() };
    let mut payload = wire::prefix(source.increment_schema).to_vec();
    encode::increment(&mut payload, &increment);
    source.send(0, Some(&payload)).await;
}

impl Installation {
    async fn verify_with(&self, args: &[&str]) -> Ended {
        self.tally(&[&["reconciler", "verify"], args].concat()).await
    }

    async fn checkpoint_lines(&self) -> Vec<String> {
        let exported = self.tally(&["reconciler", "checkpoints"]).await.expect_code(0);
        exported.stdout.lines().map(str::to_owned).collect()
    }

    /// Puts a line among the checkpoints.
    async fn append_checkpoint(&self, source: &Source, line: &str) {
        let topic = &self.config.kafka.checkpoints;
        let record = FutureRecord::to(topic).partition(0).key("0").payload(line);
        source.producer().send(record, Timeout::Never).await.expect("Kafka takes it");
    }
}

/// Removes the messages before the offsets, as retention does.
async fn remove_before(tally: &Installation, offsets: &[i64]) {
    let kafka = &tally.config.kafka;
    let mut before = TopicPartitionList::new();
    for (partition, offset) in (0..).zip(offsets) {
        before
            .add_partition_offset(&kafka.increments, partition, Offset::Offset(*offset))
            .expect("an offset is valid");
    }
    let deleted = topics::admin(kafka).delete_records(&before, &AdminOptions::new()).await;
    let deleted = deleted.expect("the broker deletes records");
    deleted.elements().iter().for_each(|element| element.error().expect("records are deleted"));
}

fn write(file: &Path, lines: &[String]) {
    std::fs::write(file, lines.join("\n")).expect("the test's folder is writable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_stay_proven_when_the_log_before_the_checkpoints_is_removed() {
    let (tally, mut services) = with_key("checkpoints").await;
    let (source, mut model) = (tally.source().await, Model::default());
    send(&source, &mut model, 1).await;
    // From here on, ids are remembered: the messages are needed again.
    let ends = topics::ends(&tally.config.kafka, &tally.config.kafka.increments).await;
    let once = Event::new("web", "once", 5, AT_MS);
    model.add_all([&once]);
    send_with_id(&source, &once, "id-1").await;
    tally.caught_up().await;
    let said = tally.verify_with(&[]).await.expect_code(0).stdout;
    assert!(said.contains("signed 3 checkpoints"), "{said}");
    assert!(said.contains(&format!("{} of partition 0", ends[0])), "{said}");
    let exported = tally.checkpoint_lines().await;
    assert_eq!(exported.len(), 3);

    send(&source, &mut model, 2).await;
    // A repetition of what came before the checkpoint counts nothing after it.
    send_with_id(&source, &once, "id-1").await;
    remove_before(&tally, &ends).await;
    let said = tally.prove(&model).await;
    assert!(said.contains("3 partitions are proven by checkpoints of key"), "{said}");

    let said = tally.verify_with(&["--from-beginning"]).await.expect_code(3).stdout;
    let gone = "no checkpoint says what they came to: no total of this partition can be proven";
    assert!(said.contains(gone) && said.contains("3 of 3 partitions are NOT proven"), "{said}");
    // Nothing but the counters of one namespace: a checkpoint is of all.
    tally.verify_with(&["--namespace", "web"]).await.expect_code(3);

    // What was counted before the checkpoint is guarded like the rest.
    let change = async |events: i64| {
        let columns = "namespace, key, bucket, partition, events";
        let row = format!("'web', 'key-0', 1767225600, 1, {events}");
        tally.sql(&format!("INSERT INTO counts ({columns}) VALUES ({row})")).await;
    };
    change(1).await;
    let said = tally.verify_with(&[]).await.expect_code(1).stdout;
    assert!(said.contains("partition 1: the counts are not what Kafka comes to"), "{said}");
    assert!(said.contains("the counters that differ could not be told"), "{said}");
    assert!(said.contains("1 of 3 partitions do NOT agree"), "{said}");
    change(-1).await;

    // The checkpoints are gone too: the exported ones still prove it.
    let kafka = &tally.config.kafka;
    let admin = topics::admin(kafka);
    let deleted = admin.delete_topics(&[&kafka.checkpoints], &AdminOptions::new()).await;
    deleted.expect("the broker answers")[0].as_ref().expect("the topic is deleted");
    tally.tally(&["init"]).await.expect_code(0);
    let said = tally.verify_with(&[]).await.expect_code(3).stdout;
    assert!(said.contains(gone), "{said}");
    let file = tally.config_file().with_file_name("exported.jsonl");
    write(&file, &exported);
    let file = file.to_str().expect("a path of the test's own");
    let said = tally.verify_with(&["--checkpoints", file]).await.expect_code(0).stdout;
    assert!(said.contains("3 partitions are proven by checkpoints"), "{said}");
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_forged_altered_foreign_or_sent_again_is_refused() {
    let (tally, mut services) = with_key("refused").await;
    let (source, mut model) = (tally.source().await, Model::default());
    send(&source, &mut model, 1).await;
    tally.prove(&model).await;
    let first = tally.checkpoint_lines().await;
    send(&source, &mut model, 2).await;
    tally.prove(&model).await;
    let newest = tally.checkpoint_lines().await;
    assert_ne!(first, newest);

    let (other, mut others) = with_key("foreign").await;
    send(&other.source().await, &mut Model::default(), 1).await;
    other.caught_up().await;
    other.verify_with(&[]).await.expect_code(0);
    let foreign = other.checkpoint_lines().await;

    let altered = newest[0].replacen("\\\"increments\\\":", "\\\"increments\\\":1", 1);
    assert_ne!(altered, newest[0]);
    let forged = r#"{"body":"{}","key":"AAAA","signature":"AAAA"}"#.to_owned();
    let strange = [
        (&altered, "its signature is not our key's"),
        (&forged, "it is signed by key AAAA, not by ours"),
        (&foreign[0], "not by ours"),
        (&first[0], "came before it"),
    ];
    for (number, (line, reason)) in strange.into_iter().enumerate() {
        tally.append_checkpoint(&source, line).await;
        let said = tally.verify_with(&[]).await.expect_code(0).stdout;
        assert!(said.contains(&format!("{} checkpoints were refused", number + 1)), "{said}");
        assert!(said.contains("3 partitions are proven by checkpoints"), "{said}");
        // Each alone: then none is believed, and every message is replayed.
        let file = tally.config_file().with_file_name("strange.jsonl");
        write(&file, &[newest[0].clone(), line.clone()]);
        let said = tally
            .verify_with(&["--checkpoints", file.to_str().expect("a path of the test's own")])
            .await
            .expect_code(0)
            .stdout;
        assert!(said.contains(reason), "{reason:?} is not in {said}");
        assert!(said.contains("1 partitions are proven by checkpoints"), "{said}");
    }
    for service in services.iter_mut().chain(&mut others) {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_gone_before_they_were_counted_are_never_proven() {
    let mut tally = Installation::new("uncounted").await;
    tally.allow("nothing of it was ever counted: what came before is in no count");
    let (kafka, source) = (&tally.config.kafka, tally.source().await);
    source.batch(1, &random_events(&mut Dice(1), 50)).await;
    remove_before(&tally, &topics::ends(kafka, &kafka.increments).await).await;
    let not_proven = async || {
        let said = tally.verify_with(&[]).await.expect_code(3).stdout;
        assert!(said.contains("partition 1: not proven: Kafka begins at offset 1"), "{said}");
        assert!(said.contains("1 of 3 partitions are NOT proven"), "{said}");
    };
    not_proven().await;

    // Nor is it begun in silence.
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    services[0].logs("\"partition\":1,\"offset\":1").await;
    send(&source, &mut Model::default(), 2).await;
    tally.caught_up().await;
    not_proven().await;
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_gone_behind_a_checkpoint_are_not_proven_by_it() {
    let (tally, mut services) = with_key("uncounted").await;
    let (source, mut model) = (tally.source().await, Model::default());
    send(&source, &mut model, 1).await;
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
    let kafka = &tally.config.kafka;
    source.batch(2, &random_events(&mut Dice(3), 50)).await;
    remove_before(&tally, &topics::ends(kafka, &kafka.increments).await).await;
    let said = tally.verify_with(&[]).await.expect_code(3).stdout;
    assert!(said.contains("partition 2: not proven: Kafka begins at offset 3"), "{said}");
    assert!(said.contains("but the checkpoint needs the messages from offset 2 on"), "{said}");
    assert!(said.contains("1 of 3 partitions are NOT proven"), "{said}");
}
