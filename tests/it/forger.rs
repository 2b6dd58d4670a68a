//! What no aggregator of ours does: batches and rejections that somebody else puts on the topics.

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use tally_counts::{Fingerprint, Reject};
use tally_platform::config::Config;
use tally_platform::registry::Registry;
use tally_schemas::{Delta, DeltaBatchHeader, avsc, delta_batch, wire};

pub(crate) struct Forger {
    config: Config,
    producer: FutureProducer,
    topic_id: String,
    schema: u32,
}

impl Forger {
    pub(crate) async fn new(config: &Config) -> Forger {
        let registry = Registry::new(&config.registry).expect("a client is made");
        let subject = format!("{}-value", config.kafka.deltas);
        let schema = registry.register(&subject, avsc::DELTA_BATCH).await;
        let producer: FutureProducer = tally_kafka::producer(&config.kafka.cluster(), "tally-it")
            .create()
            .expect("a producer is made");
        let (client, topic) = (producer.clone(), config.kafka.increments.clone());
        let topic_id = tokio::task::spawn_blocking(move || {
            use rdkafka::producer::Producer;
            tally_kafka::topic_id(client.client(), &topic).expect("the topic is there")
        });
        Forger {
            config: config.clone(),
            producer,
            topic_id: topic_id.await.expect("no panic"),
            schema: schema.expect("the registry answers"),
        }
    }

    /// Puts a batch on `deltas` whose fingerprint is right; the header's own is of no matter.
    pub(crate) async fn batch(&self, header: DeltaBatchHeader<'_>, deltas: &[Delta<'_>]) -> i64 {
        let header = self.sound(header, deltas);
        let mut payload = wire::prefix(self.schema).to_vec();
        delta_batch::encode(&mut payload, &header, deltas.iter().copied());
        self.delta_message(header.partition, &payload).await
    }

    /// The header with what the deltas come to.
    pub(crate) fn sound<'a>(
        &'a self,
        header: DeltaBatchHeader<'a>,
        deltas: &[Delta<'_>],
    ) -> DeltaBatchHeader<'a> {
        let row = |delta: &Delta<'_>| {
            Fingerprint::of_row(delta.namespace, delta.key, delta.bucket_s, delta.sum)
        };
        let fingerprint = deltas.iter().map(row).fold(Fingerprint::ZERO, |sum, row| sum + row);
        let events: i64 = deltas.iter().map(|delta| delta.events).sum();
        DeltaBatchHeader {
            topic_id: &self.topic_id,
            increments: events.cast_unsigned(),
            fingerprint: fingerprint.to_bits(),
            ..header
        }
    }

    /// Puts a message on `deltas`.
    pub(crate) async fn delta_message(&self, partition: i32, payload: &[u8]) -> i64 {
        let record = FutureRecord::<(), [u8]>::to(&self.config.kafka.deltas)
            .partition(partition)
            .payload(payload);
        self.producer.send(record, Timeout::Never).await.expect("the broker takes it").offset
    }

    /// Puts a message on the topic of rejected messages, for a reason that is made up.
    pub(crate) async fn rejection(&self, partition: i32, offset: i64, reason: Reject) {
        let (of, at) = (partition.to_string(), offset.to_string());
        let headers = [
            ("tally.reason", reason.as_str()),
            ("tally.partition", of.as_str()),
            ("tally.offset", at.as_str()),
        ];
        self.rejected(partition, &headers).await;
    }

    /// Puts a message with these headers on the topic of rejected messages.
    pub(crate) async fn rejected(&self, partition: i32, headers: &[(&str, &str)]) {
        let list = headers.iter().fold(OwnedHeaders::new(), |list, (key, value)| {
            list.insert(Header { key, value: Some(*value) })
        });
        let record = FutureRecord::<(), str>::to(&self.config.kafka.rejected)
            .partition(partition)
            .payload("made up")
            .headers(list);
        self.producer.send(record, Timeout::Never).await.expect("the broker takes it");
    }
}

/// The header of a batch of these offsets, with nothing counted.
pub(crate) fn header(partition: i32, from: i64, to: i64) -> DeltaBatchHeader<'static> {
    DeltaBatchHeader {
        topic_id: "",
        partition,
        from,
        to,
        counted: 0,
        duplicate: 0,
        rejected: 0,
        increments: 0,
        fingerprint: 0,
        correction: false,
    }
}
