//! What stops one partition in the reader stops no other: a partition that ClickHouse does not
//! take, a chain that broke, messages that are gone, partitions that were added. None of it needs
//! the reader started again, and no answer is ever wrong meanwhile.

use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::admin::AdminOptions;
use serde_json::{Value, json};
use tally_counts::Position;
use tally_schemas::wire;

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::forger::{Forger, header};
use crate::installation::Installation;
use crate::lag::comes_to;
use crate::model::{Event, Model};
use crate::reading::{counter_url, log_end, read, read_all, total};
use crate::service::{Service, ServiceProcess};
use crate::source::Source;
use crate::topics;
use crate::topics_change::add_partitions;
use crate::wait::until;

/// The partition that is in trouble.
const VICTIM: i32 = 1;
/// A broker holds a fetch back that long at most, and then some.
const FETCH_WAIT: Duration = Duration::from_millis(500);
const STANDS_STILL: &str = "the partition's counts are as of where it stands";
const METRIC: &str = "tally_reader_partition_stands_still";

/// An aggregator, a sink and a reader.
async fn start(
    tally: &Installation,
    overrides: &[(&str, &str)],
) -> (ServiceProcess, ServiceProcess, ServiceProcess) {
    let kinds = [Service::Aggregator, Service::Sink, Service::Reader];
    let [mut aggregator, mut sink, mut reader] =
        kinds.map(|kind| tally.start_with(kind, "a", overrides));
    for service in [&mut aggregator, &mut sink, &mut reader] {
        service.ready().await;
    }
    (aggregator, sink, reader)
}

/// The victim alone stands still, with this reason, in readiness and in the metric.
async fn stands_still(reader: &ServiceProcess, why: &str) {
    until("the reader to say what stands still", async || match reader.readiness().await {
        Err(reasons) if reasons.contains(why) && reasons.contains("(since 20") => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
    assert_eq!(reader.metric(METRIC, &format!("partition=\"{VICTIM}\"")).await, Ok(1.0));
    assert_eq!(reader.metric(METRIC, "").await, Ok(1.0), "no other partition stands still");
}

/// The victim goes on by itself, and everything is right.
async fn goes_on(tally: &Installation, reader: &mut ServiceProcess, model: &Model) {
    let end = log_end(tally).await;
    reader.ready().await;
    let expected: Vec<_> = model.counters().into_values().collect();
    until("the reader to include all", async || match as_of(reader, &end).await {
        (200, _) => Ok(()),
        (_, problem) => Err(problem.to_string()),
    })
    .await;
    assert_eq!(read_all(reader, model, &end).await, expected);
    assert_eq!(reader.metric(METRIC, "").await, Ok(0.0));
    comes_to(0.0, reader, "tally_reader_lag", "").await;
}

async fn as_of(reader: &ServiceProcess, position: &str) -> (u16, Value) {
    let url = counter_url(reader, "web", "one", &format!("after={position}"));
    reader.call(reader.http().get(url)).await
}

/// Increments of the counter `one`, one a message: the first `n` messages of a partition come to
/// `n`.
async fn add_ones(source: &Source, model: &mut Model, partition: i32, count: usize) {
    let event = Event::new("web", "one", 1, 1_780_000_000_000);
    for _ in 0..count {
        source.single(partition, &event).await;
        model.add(&event);
    }
}

/// The others are as fresh as ever, and of the victim is answered what is true.
async fn others_are_fresh(
    tally: &Installation,
    source: &Source,
    reader: &ServiceProcess,
    model: &mut Model,
) {
    for other in (0..tally.config.kafka.partitions).filter(|other| *other != VICTIM) {
        add_ones(source, model, other, 3).await;
    }
    let end: Position = log_end(tally).await.parse().expect("it is one");
    let others: Position = end.iter().filter(|(partition, _)| *partition != VICTIM).collect();
    // Every message of the log is one of the counter, so the value tells the position.
    let answer = read(reader, "web", "one", &format!("after={others}")).await;
    let included: Position = answer["as_of"].as_str().expect("text").parse().expect("a position");
    let sum: i64 = included.iter().map(|(_, next)| next).sum();
    assert_eq!(total(&answer), (sum.into(), sum), "{answer}");
    assert!(!included.includes(&end), "the partition stands still: {included}");

    let (status, problem) = as_of(reader, &end.to_string()).await;
    assert_eq!(
        (status, &problem["type"]),
        (503, &json!("urn:tally:problem:partition_stands_still")),
        "{problem}"
    );
    assert!(problem["detail"].to_string().contains(&format!("partition {VICTIM}")), "{problem}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_clickhouse_does_not_take_leaves_the_others_fresh() {
    let mut tally = Installation::new("not_taken").await;
    tally.allow("ClickHouse");
    tally.allow(STANDS_STILL);
    let (mut aggregator, mut sink, mut reader) =
        start(&tally, &[("TALLY_READER__UNSTORED_BYTES", "4000")]).await;
    let (source, mut model) = (tally.source().await, Model::default());
    for partition in 0..tally.config.kafka.partitions {
        add_ones(&source, &mut model, partition, 5).await;
    }
    tally.caught_up().await;
    tally
        .sql(&format!("ALTER TABLE counts ADD CONSTRAINT trouble CHECK partition != {VICTIM}"))
        .await;

    until("the window to be full of the partition's batches", async || {
        add_ones(&source, &mut model, VICTIM, 1).await;
        reader.readiness().await.err().ok_or("it is ready")
    })
    .await;
    stands_still(&reader, "fill the partition's share of reader.unstored_bytes").await;
    let victim = format!("partition=\"{VICTIM}\"");
    let state = format!("{victim},state=\"waiting_for_room\"");
    assert_eq!(reader.metric("tally_reader_partition_state", &state).await, Ok(1.0));
    reader.counts_beyond(0.0, "tally_reader_lag", &victim).await;
    reader.counts_beyond(3.0, "tally_reader_lag_seconds", &victim).await;
    comes_to(0.0, &reader, "tally_reader_lag", "partition=\"0\"").await;
    others_are_fresh(&tally, &source, &reader, &mut model).await;

    tally.sql("ALTER TABLE counts DROP CONSTRAINT trouble").await;
    goes_on(&tally, &mut reader, &model).await;
    tally.prove(&model).await;
    for service in [&mut aggregator, &mut sink, &mut reader] {
        service.terminate().await;
    }
}

/// A message that is no batch, or none that follows, stops the partition alone until ClickHouse is
/// past it. `forge` puts it on `deltas` and returns its offset.
async fn goes_on_once_clickhouse_is_past(name: &str, forge: impl AsyncFnOnce(&Forger) -> i64) {
    let mut tally = Installation::new(name).await;
    tally.allow("the partition stops; the others go on");
    tally.allow(STANDS_STILL);
    let (mut aggregator, mut sink, mut reader) = start(&tally, &[]).await;
    let (source, mut model) = (tally.source().await, Model::default());
    for partition in 0..tally.config.kafka.partitions {
        add_ones(&source, &mut model, partition, 5).await;
    }
    tally.caught_up().await;
    let answer = read(&reader, "web", "one", &format!("after={}", log_end(&tally).await)).await;
    assert_eq!(total(&answer), (15, 15), "it is in memory from now on");

    let offset = forge(&Forger::new(&tally.config).await).await;
    sink.logs("the partition stops; the others go on").await;
    stands_still(&reader, &format!("partition {VICTIM}, offset {offset}")).await;
    add_ones(&source, &mut model, VICTIM, 5).await;
    others_are_fresh(&tally, &source, &reader, &mut model).await;

    // A person has ClickHouse pass over the message, which counts nothing.
    let ledgers = tally_platform::store::ledgers(tally.store()).await.expect("it answers");
    let stored = ledgers[&VICTIM].deltas.position().expect("the ledger is whole");
    let next = tally_counts::next_offset(offset);
    tally
        .sql(&format!(
            "INSERT INTO counts (partition, namespace, key, bucket, sum_low, sum_high, events, \
             high) VALUES ({VICTIM}, '__tally', 'deltas', 0, {}, 0, 1, {next})",
            next - stored
        ))
        .await;
    sink.terminate().await;
    sink.start_again();
    goes_on(&tally, &mut reader, &model).await;
    let answer = read(&reader, "web", "one", "").await;
    assert_eq!(total(&answer), (26, 26), "what was in memory was looked up anew: {answer}");
    for service in [&mut aggregator, &mut sink, &mut reader] {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_broke_goes_on_from_clickhouses_position() {
    let forge = async |forger: &Forger| forger.batch(header(VICTIM, 7, 7), &[]).await;
    goes_on_once_clickhouse_is_past("broken_chain", forge).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_by_a_schema_that_nobody_knows_goes_on_from_clickhouses_position() {
    let payload = [wire::prefix(999_999).as_slice(), b"no batch"].concat();
    let forge = async |forger: &Forger| forger.delta_message(VICTIM, &payload).await;
    goes_on_once_clickhouse_is_past("unknown_batch", forge).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_next_batches_are_gone_goes_on_from_clickhouses_position() {
    let mut tally = Installation::new("reader_retention").await;
    tally.allow(STANDS_STILL);
    // librdkafka says so before the reader says which partition it is.
    tally.allow("requested offset not available on the broker");
    let (mut aggregator, mut sink, mut reader) = start(&tally, &[]).await;
    let (source, mut model) = (tally.source().await, Model::default());
    for partition in 0..tally.config.kafka.partitions {
        add_ones(&source, &mut model, partition, 5).await;
    }
    tally.caught_up().await;
    let answer = read(&reader, "web", "one", &format!("after={}", log_end(&tally).await)).await;
    assert_eq!(total(&answer), (15, 15), "it is in memory from now on");

    reader.freeze();
    // What it had asked for is answered by then, with nothing.
    tokio::time::sleep(FETCH_WAIT).await;
    add_ones(&source, &mut model, VICTIM, 4).await;
    tally.caught_up().await;
    let kafka = &tally.config.kafka;
    let mut ends = TopicPartitionList::new();
    ends.add_partition_offset(&kafka.deltas, VICTIM, rdkafka::Offset::End).expect("it is valid");
    let deleted = topics::admin(kafka).delete_records(&ends, &AdminOptions::new()).await;
    let deleted = deleted.expect("the broker deletes records");
    deleted.elements().iter().for_each(|element| element.error().expect("records are deleted"));
    reader.thaw();

    goes_on(&tally, &mut reader, &model).await;
    for partition in 0..tally.config.kafka.partitions {
        add_ones(&source, &mut model, partition, 2).await;
    }
    goes_on(&tally, &mut reader, &model).await;
    tally.prove(&model).await;
    for service in [&mut aggregator, &mut sink, &mut reader] {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_were_added_are_read_without_a_restart() {
    let mut tally = Installation::new("reader_grown").await;
    tally.allow("partitions wait for their positions");
    let (mut aggregator, mut sink, mut reader) = start(&tally, &[]).await;
    let mut model = Model::default();
    let events = random_events(&mut Dice(71), 500);
    tally.source().await.spread(&events, 25).await;
    model.add_all(&events);
    let expected = |model: &Model| model.counters().into_values().collect::<Vec<_>>();
    assert_eq!(read_all(&reader, &model, &log_end(&tally).await).await, expected(&model));

    let (increments, deltas) =
        (tally.config.kafka.increments.clone(), tally.config.kafka.deltas.clone());
    add_partitions(&tally, &deltas, 5).await;
    add_partitions(&tally, &increments, 5).await;
    tally.configure(|config| config.kafka.partitions = 5);
    let events = random_events(&mut Dice(72), 500);
    tally.source().await.spread(&events, 25).await;
    model.add_all(&events);
    let new = Event::new("web", "only in a new partition", 7, 1_780_000_000_000);
    tally.source().await.single(4, &new).await;
    model.add(&new);
    // ClickHouse has counts of partitions that the reader may not know yet.
    tally.caught_up().await;
    let answer = read(&reader, "web", "only in a new partition", "").await;
    assert_eq!(total(&answer), (7, 1), "a miss needs no restart: {answer}");
    assert_eq!(read_all(&reader, &model, &log_end(&tally).await).await, expected(&model));

    // The new ones are followed as the old ones are.
    sink.terminate().await;
    let events = random_events(&mut Dice(73), 200);
    tally.source().await.spread(&events, 10).await;
    model.add_all(&events);
    assert_eq!(read_all(&reader, &model, &log_end(&tally).await).await, expected(&model));
    assert_eq!(reader.readiness().await, Ok(()));
    sink.start_again();
    tally.prove(&model).await;
    for service in [&mut aggregator, &mut sink, &mut reader] {
        service.terminate().await;
    }
}
