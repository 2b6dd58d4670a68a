//! A client of Tally: puts messages straight into the log, and knows that they are there.

use futures_util::future::join_all;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use tally_platform::config::Config;
use tally_platform::registry::Registry;
use tally_schemas::{BatchEncoder, avsc, encode, wire};

use crate::model::Event;

#[derive(Clone)]
pub(crate) struct Source {
    producer: FutureProducer,
    topic: String,
    partitions: i32,
    pub(crate) increment_schema: u32,
    pub(crate) batch_schema: u32,
}

impl Source {
    /// Asks the registry for the ids of Tally's own schemas.
    pub(crate) async fn new(config: &Config) -> Source {
        Source::with(config, &[("linger.ms", "1")]).await
    }

    /// A source whose producer has these properties.
    pub(crate) async fn with(config: &Config, properties: &[(&str, &str)]) -> Source {
        let registry = Registry::new(&config.registry).expect("a client is made");
        let register = async |subject: &str, schema| {
            registry.register(subject, schema).await.expect("the registry answers")
        };
        let increment_schema =
            register(&format!("{}-value", config.kafka.increments), avsc::INCREMENT).await;
        let batch_schema = register(avsc::INCREMENT_BATCH_SUBJECT, avsc::INCREMENT_BATCH).await;
        let mut producer = tally_kafka::producer(&config.kafka.cluster(), "tally-it");
        for (name, value) in properties {
            producer.set(*name, *value);
        }
        Source {
            producer: producer.create().expect("a producer is made"),
            topic: config.kafka.increments.clone(),
            partitions: config.kafka.partitions,
            increment_schema,
            batch_schema,
        }
    }

    pub(crate) fn producer(&self) -> &FutureProducer {
        &self.producer
    }

    pub(crate) fn partitions(&self) -> i32 {
        self.partitions
    }

    /// Sends a message as it is, and returns its offset; no payload makes a tombstone.
    pub(crate) async fn send(&self, partition: i32, payload: Option<&[u8]>) -> i64 {
        self.send_at(None, partition, payload).await
    }

    /// As [`Source::send`], by a clock of the client's own: milliseconds since 1970, if it is
    /// right.
    pub(crate) async fn send_at(
        &self,
        timestamp: Option<i64>,
        partition: i32,
        payload: Option<&[u8]>,
    ) -> i64 {
        self.send_record(timestamp, partition, payload, None).await
    }

    /// As [`Source::send`], with a header.
    pub(crate) async fn send_with(
        &self,
        (name, value): (&str, &[u8]),
        partition: i32,
        payload: &[u8],
    ) -> i64 {
        let headers = OwnedHeaders::new().insert(Header { key: name, value: Some(value) });
        self.send_record(None, partition, Some(payload), Some(headers)).await
    }

    /// Sends a message without waiting until the log has it.
    pub(crate) fn send_soon(&self, partition: i32, payload: &[u8]) {
        let record = FutureRecord::<[u8], [u8]>::to(&self.topic).partition(partition);
        if let Err((error, _)) = self.producer.send_result(record.payload(payload)) {
            panic!("send to {}, partition {partition}: {error}", self.topic);
        }
    }

    async fn send_record(
        &self,
        timestamp: Option<i64>,
        partition: i32,
        payload: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
    ) -> i64 {
        let record = FutureRecord::<[u8], [u8]> {
            topic: &self.topic,
            partition: Some(partition),
            payload,
            key: None,
            timestamp,
            headers,
        };
        match self.producer.send(record, Timeout::Never).await {
            Ok(delivery) => {
                tally_kafka::appended_at(delivery.offset).expect("the broker tells an offset")
            }
            Err((error, _)) => panic!("send to {}, partition {partition}: {error}", self.topic),
        }
    }

    /// Sends one message of the easy kind.
    pub(crate) async fn single(&self, partition: i32, event: &Event) -> i64 {
        self.send(partition, Some(&self.encode_single(event))).await
    }

    /// Sends one message of the fast kind.
    pub(crate) async fn batch(&self, partition: i32, events: &[Event]) -> i64 {
        self.send(partition, Some(&self.encode_batch(events))).await
    }

    /// Sends batches of the given size, over all partitions in turn.
    pub(crate) async fn spread(&self, events: &[Event], batch: usize) {
        let partitions = (0..self.partitions).cycle();
        join_all(
            events
                .chunks(batch)
                .zip(partitions)
                .map(|(events, partition)| self.batch(partition, events)),
        )
        .await;
    }

    pub(crate) fn encode_single(&self, event: &Event) -> Vec<u8> {
        let mut payload = wire::prefix(self.increment_schema).to_vec();
        encode::increment(&mut payload, &event.increment());
        payload
    }

    pub(crate) fn encode_batch(&self, events: &[Event]) -> Vec<u8> {
        let mut payload = wire::prefix(self.batch_schema).to_vec();
        payload.extend_from_slice(&batch_body(events));
        payload
    }
}

/// An IncrementBatch without the prefix that a message has.
pub(crate) fn batch_body(events: &[Event]) -> Vec<u8> {
    let mut batch = BatchEncoder::new();
    events.iter().for_each(|event| batch.push(&event.increment()));
    let mut body = Vec::new();
    batch.finish(&mut body, None);
    body
}
