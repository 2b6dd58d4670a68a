//! What Kafka holds: ends of topics, their messages and their settings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ConfigSource, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, OwnedMessage};
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_platform::config;

use crate::wait::{PATIENCE, until};

const POLL: Duration = Duration::from_millis(100);

/// The next offset of each partition.
pub(crate) async fn ends(kafka: &config::Kafka, topic: &str) -> Vec<i64> {
    let (kafka, topic) = (kafka.clone(), topic.to_owned());
    blocking(move || {
        let client: BaseConsumer =
            tally_kafka::client(&kafka.cluster(), "tally-it").create().expect("a client is made");
        let end = |partition| {
            tally_kafka::watermarks(client.client(), &topic, partition).map(|(_, end)| end)
        };
        (0..kafka.partitions)
            .map(end)
            .collect::<Result<_, _>>()
            .expect("the broker tells where topics end")
    })
    .await
}

/// The offset of each partition that the group has committed; -1 where it has none.
pub(crate) async fn committed(kafka: &config::Kafka, group: &str, topic: &str) -> Vec<i64> {
    let (kafka, group, topic) = (kafka.clone(), group.to_owned(), topic.to_owned());
    blocking(move || {
        let consumer: BaseConsumer = tally_kafka::consumer(&kafka.cluster(), "tally-it", &group)
            .create()
            .expect("a consumer is made");
        let mut all = TopicPartitionList::new();
        all.add_partition_range(&topic, 0, kafka.partitions - 1);
        let committed = consumer.committed_offsets(all, PATIENCE).expect("the group is known");
        let offset = |partition| match committed.find_partition(&topic, partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        (0..kafka.partitions).map(|partition| offset(partition).unwrap_or(-1)).collect()
    })
    .await
}

/// Every committed message of the topic, partition by partition.
pub(crate) async fn messages(kafka: &config::Kafka, topic: &str) -> Vec<OwnedMessage> {
    let (kafka, topic) = (kafka.clone(), topic.to_owned());
    blocking(move || {
        let consumer: BaseConsumer =
            tally_kafka::consumer(&kafka.cluster(), "tally-it", "tally-it")
                .set("enable.partition.eof", "true")
                .create()
                .expect("a consumer is made");
        let mut all = TopicPartitionList::new();
        for partition in 0..kafka.partitions {
            all.add_partition_offset(&topic, partition, Offset::Beginning)
                .expect("an offset is valid");
        }
        consumer.assign(&all).expect("partitions are assigned by hand");
        let begun = Instant::now();
        // A partition may be at its end more than once.
        let (mut messages, mut ended) = (Vec::new(), BTreeSet::new());
        while ended.len() < kafka.partitions as usize {
            assert!(
                begun.elapsed() < PATIENCE,
                "{topic} is not read to its end within {PATIENCE:?}"
            );
            match consumer.poll(POLL) {
                Some(Ok(message)) => messages.push(message.detach()),
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                }
                Some(Err(error)) => panic!("read {topic}: {error}"),
                None => {}
            }
        }
        messages.sort_by_key(|message| (message.partition(), message.offset()));
        messages
    })
    .await
}

/// The topics that there are, without those that Kafka has for itself.
pub(crate) async fn names(kafka: &config::Kafka) -> BTreeSet<String> {
    let kafka = kafka.clone();
    blocking(move || {
        let client: BaseConsumer =
            tally_kafka::client(&kafka.cluster(), "tally-it").create().expect("a client is made");
        let metadata = client.fetch_metadata(None, PATIENCE).expect("the broker answers");
        let names = metadata.topics().iter().map(|topic| topic.name());
        names.filter(|name| !name.starts_with("__")).map(str::to_owned).collect()
    })
    .await
}

/// The topic's own settings, without what it has from the broker.
pub(crate) async fn settings(kafka: &config::Kafka, topic: &str) -> BTreeMap<String, String> {
    let topic = ResourceSpecifier::Topic(topic);
    let described = admin(kafka).describe_configs([&topic], &AdminOptions::new()).await;
    let described = described.expect("the broker answers").remove(0).expect("it knows the topic");
    let own = |entry: &rdkafka::admin::ConfigEntry| entry.source == ConfigSource::DynamicTopic;
    let own = described.entries.into_iter().filter(own);
    own.map(|entry| (entry.name, entry.value.expect("a topic has no secrets"))).collect()
}

/// Changes some of the topic's settings.
pub(crate) async fn set(kafka: &config::Kafka, topic: &str, changes: &[(&str, &str)]) {
    let mut settings = settings(kafka, topic).await;
    for (name, value) in changes {
        settings.insert((*name).to_owned(), (*value).to_owned());
    }
    // What is not in such a request goes back to the broker's default.
    let change = settings
        .iter()
        .fold(AlterConfig::new(ResourceSpecifier::Topic(topic)), |change, (name, value)| {
            change.set(name, value)
        });
    let altered = admin(kafka).alter_configs([&change], &AdminOptions::new()).await;
    for outcome in altered.expect("the broker answers") {
        outcome.expect("the topic is altered");
    }
    // The controller has them; the broker, which tells and obeys them, has them a little later.
    until("the broker has the settings", async || {
        let have = self::settings(kafka, topic).await;
        let missing = settings.iter().find(|(name, value)| have.get(*name) != Some(value));
        missing.map_or(Ok(()), |(name, value)| Err(format!("{topic}: {name} is not {value}")))
    })
    .await;
}

pub(crate) fn admin(kafka: &config::Kafka) -> AdminClient<DefaultClientContext> {
    tally_kafka::client(&kafka.cluster(), "tally-it").create().expect("a client is made")
}

/// A header's text.
pub(crate) fn header<'m>(message: &'m OwnedMessage, name: &str) -> Option<&'m str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    Some(std::str::from_utf8(header.value?).expect("Tally's headers are text"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
