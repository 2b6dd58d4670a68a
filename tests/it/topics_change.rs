//! Topics that lose messages, are deleted and made again, or grow: what was counted stays exact. A
//! partition that lost messages stops alone; of a topic that was made again, nothing is counted.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use tally_platform::config;

use crate::dice::Dice;
use crate::feeder::{Feeder, random_events};
use crate::installation::Installation;
use crate::model::Model;
use crate::service::{Service, ServiceProcess};
use crate::topics;
use crate::wait::until;

/// `EX_SOFTWARE`: what nobody but a person can mend.
const FAILED: i32 = 70;
/// Logged, and said once more by the program's end.
const OUT_OF_RANGE: &str = "is to be read next, but Kafka has";
const MADE_AGAIN: &str = "was deleted and made again: its id was";
/// A broker holds a fetch back that long at most, and then some.
const FETCH_WAIT: Duration = Duration::from_millis(500);

fn admin(kafka: &config::Kafka) -> AdminClient<DefaultClientContext> {
    tally_kafka::client(&kafka.cluster(), "tally-it-admin").create().expect("a client is made")
}

/// Removes what the partition holds, as retention does.
async fn delete_records(tally: &Installation, partition: i32) {
    let kafka = &tally.config.kafka;
    let mut ends = TopicPartitionList::new();
    ends.add_partition_offset(&kafka.increments, partition, Offset::End)
        .expect("an offset is valid");
    let deleted = admin(kafka).delete_records(&ends, &AdminOptions::new()).await;
    let deleted = deleted.expect("the broker deletes records");
    deleted.elements().iter().for_each(|element| element.error().expect("records are deleted"));
}

async fn make_again(tally: &Installation) {
    let kafka = &tally.config.kafka;
    let admin = admin(kafka);
    let deleted = admin.delete_topics(&[&kafka.increments], &AdminOptions::new()).await;
    deleted.expect("the broker answers")[0].as_ref().expect("the topic is deleted");
    until("the topic to be made again", async || {
        let new = NewTopic::new(&kafka.increments, kafka.partitions, TopicReplication::Fixed(1));
        let made =
            admin.create_topics([&new], &AdminOptions::new()).await.expect("the broker answers");
        made[0].as_ref().map(drop).map_err(|(_, code)| code.to_string())
    })
    .await;
}

pub(crate) async fn add_partitions(tally: &Installation, topic: &str, count: usize) {
    let new = NewPartitions::new(topic, count);
    let added = admin(&tally.config.kafka).create_partitions([&new], &AdminOptions::new()).await;
    added.expect("the broker answers")[0].as_ref().expect("partitions are added");
}

/// Both services, and increments that they have counted.
async fn counted(tally: &Installation, seed: u64) -> ([ServiceProcess; 2], Model) {
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let load = Feeder::start(&tally.source().await, seed);
    services[1].counts_beyond(3.0, "tally_sink_batches_total", "").await;
    let model = load.stop().await;
    tally.prove(&model).await;
    (services, model)
}

/// The aggregator stands still with this partition, says why, and counts the others.
async fn stops_alone(
    tally: &Installation,
    [aggregator, sink]: &mut [ServiceProcess; 2],
    partition: i32,
    why: &str,
) {
    aggregator.logs(why).await;
    until("readiness to say why", async || match aggregator.readiness().await {
        Err(reasons) if reasons.contains(why) && reasons.contains("(since 20") => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
    let label = format!("partition=\"{partition}\"");
    assert_eq!(aggregator.metric("tally_aggregator_partition_stands_still", &label).await, Ok(1.0));
    let source = tally.source().await;
    for other in (0..tally.config.kafka.partitions).filter(|other| *other != partition) {
        let stored = sink.metric("tally_sink_batches_total", "").await.expect("a metric");
        source.batch(other, &random_events(&mut Dice(60), 5)).await;
        sink.counts_beyond(stored, "tally_sink_batches_total", "").await;
    }
    aggregator.terminate().await;
    sink.terminate().await;
}

async fn ends_saying(aggregator: &mut ServiceProcess, texts: &[&str]) {
    assert_eq!(aggregator.ended().await.code(), Some(FAILED));
    for text in texts {
        aggregator.logs(text).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_gone_before_they_were_counted_stop_their_partition_alone() {
    let mut tally = Installation::new("retention").await;
    tally.allow(OUT_OF_RANGE);
    let (mut services, _) = counted(&tally, 61).await;
    services[0].terminate().await;
    let next = topics::ends(&tally.config.kafka, &tally.config.kafka.increments).await[1];
    let source = tally.source().await;
    for _ in 0..3 {
        source.batch(1, &random_events(&mut Dice(62), 5)).await;
    }
    delete_records(&tally, 1).await;
    services[0].start_again();
    let (topic, low) = (&tally.config.kafka.increments, next + 3);
    let why = format!(
        "topic {topic}, partition 1: offset {next} is to be read next, but Kafka has {low} up to \
         {low}"
    );
    stops_alone(&tally, &mut services, 1, &why).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_go_while_the_aggregator_runs_stop_their_partition_alone() {
    let mut tally = Installation::new("running_retention").await;
    tally.allow(OUT_OF_RANGE);
    let (mut services, _) = counted(&tally, 63).await;
    services[0].freeze();
    // What it had asked for is answered by then, with nothing.
    tokio::time::sleep(FETCH_WAIT).await;
    let source = tally.source().await;
    for _ in 0..4 {
        source.batch(2, &random_events(&mut Dice(64), 5)).await;
    }
    delete_records(&tally, 2).await;
    services[0].thaw();
    stops_alone(&tally, &mut services, 2, OUT_OF_RANGE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_past_the_logs_end_stops_its_partition_alone() {
    let mut tally = Installation::new("past_end").await;
    tally.allow(OUT_OF_RANGE);
    let (mut services, _) = counted(&tally, 65).await;
    services[0].terminate().await;
    let end = topics::ends(&tally.config.kafka, &tally.config.kafka.increments).await[0];
    let (config, next) = (tally.config.clone(), end + 1_000);
    let commit = tokio::task::spawn_blocking(move || {
        let group = &config.aggregator.group;
        let consumer: BaseConsumer =
            tally_kafka::consumer(&config.kafka.cluster(), "tally-it", group).create()?;
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&config.kafka.increments, 0, Offset::Offset(next))?;
        consumer.commit(&offsets, CommitMode::Sync)
    });
    commit.await.expect("no panic").expect("the group has no member and takes the offset");
    services[0].start_again();
    let why = format!("partition 0: offset {next} is to be read next, but Kafka has 0 up to {end}");
    stops_alone(&tally, &mut services, 0, &why).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_while_the_aggregator_is_away_is_not_counted_on_the_old_ones_offsets() {
    let mut tally = Installation::new("made_again").await;
    tally.allow(MADE_AGAIN);
    let ([mut aggregator, mut sink], _) = counted(&tally, 66).await;
    aggregator.terminate().await;
    make_again(&tally).await;
    aggregator.start_again();
    ends_saying(&mut aggregator, &[MADE_AGAIN]).await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_under_a_running_aggregator_stops_it() {
    let mut tally = Installation::new("made_again_running").await;
    tally.allow(MADE_AGAIN);
    // While the topic is not there, the consumer says so.
    tally.allow("trouble with a Kafka broker; librdkafka reconnects");
    tally.allow("connection to the Kafka broker lost; reconnecting");
    tally.allow("is not there: run `tally init`");
    let ([mut aggregator, mut sink], _) = counted(&tally, 67).await;
    make_again(&tally).await;
    ends_saying(&mut aggregator, &[]).await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_added_under_load_are_counted_once_deltas_has_them_too() {
    let mut tally = Installation::new("grown").await;
    tally.allow("partitions wait for their positions");
    let ([mut aggregator, mut sink], mut model) = counted(&tally, 68).await;
    let old = Feeder::start(&tally.source().await, 69);
    let (increments, deltas) =
        (tally.config.kafka.increments.clone(), tally.config.kafka.deltas.clone());
    add_partitions(&tally, &increments, 5).await;
    aggregator.logs(&format!("needs its own in {deltas}, which has 3 partitions")).await;
    // Those that were there go on.
    aggregator
        .counts_beyond(
            aggregator
                .metric("tally_aggregator_flushes_total", "\"committed\"")
                .await
                .expect("a metric"),
            "tally_aggregator_flushes_total",
            "\"committed\"",
        )
        .await;
    add_partitions(&tally, &deltas, 5).await;
    tally.configure(|config| config.kafka.partitions = 5);
    let new = Feeder::start(&tally.source().await, 70);
    old.goes_on().await;
    new.goes_on().await;
    model.merge(old.stop().await);
    model.merge(new.stop().await);
    tally.prove(&model).await;
    aggregator.terminate().await;
    sink.terminate().await;
}
