//! Most flights: Avro batches straight into the log, as a client library sends them.

use std::time::{Duration, Instant};

use anyhow::Context;
use clickhouse::query::RowCursor;
use indicatif::ProgressBar;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::util::Timeout;
use tally_platform::config::Config;
use tally_platform::registry::Registry;
use tally_schemas::{BatchEncoder, Increment, avsc, wire};

use super::NAMESPACE;
use super::flights::Flight;
use super::report::Stage;
use tally_load::Deliveries;

/// Increments in a message.
const BATCH: usize = 500;
const FLUSH_LIMIT: Duration = Duration::from_secs(60);
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(2);

pub(super) struct Load {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
    schema_id: u32,
}

impl Load {
    pub(super) async fn start(config: &Config) -> anyhow::Result<Load> {
        let registry = Registry::new(&config.registry)?;
        let schema_id =
            registry.register(avsc::INCREMENT_BATCH_SUBJECT, avsc::INCREMENT_BATCH).await?;
        let producer = tally_kafka::producer(&config.kafka.cluster(), "tally-demo")
            .set("linger.ms", "20")
            .create_with_context(Deliveries::default())?;
        Ok(Load { producer, topic: config.kafka.increments.clone(), schema_id })
    }

    /// Sends the next `count` flights, and returns once the log has them all.
    pub(super) async fn run(
        &self,
        flights: &mut RowCursor<Flight>,
        count: u64,
        progress: &ProgressBar,
    ) -> anyhow::Result<Stage> {
        let started = Instant::now();
        let (mut batch, mut key, mut message) = (BatchEncoder::new(), String::new(), Vec::new());
        let mut sent = 0;
        for number in 0..count {
            let flight = flights.next().await?;
            let flight = flight
                .with_context(|| format!("the file ends after {number} of {count} flights"))?;
            flight.increments(&mut key, |key, delta| {
                let namespace = NAMESPACE;
                batch.push(&Increment { namespace, key, delta, at_ms: flight.at_ms, id: None });
            });
            if batch.count() >= BATCH {
                sent += self.send(&mut batch, &mut message).await?;
                progress.set_position(self.acknowledged()?);
            }
        }
        sent += self.send(&mut batch, &mut message).await?;
        tokio::task::block_in_place(|| self.producer.flush(Timeout::After(FLUSH_LIMIT)))?;
        let acknowledged = self.acknowledged()?;
        anyhow::ensure!(
            acknowledged == sent,
            "{sent} increments were sent, {acknowledged} acknowledged"
        );
        progress.set_position(acknowledged);
        Ok(Stage::since("sent to Kafka as Avro batches", acknowledged, started))
    }

    /// Increments that the log has; an error once there is one that it may not have.
    fn acknowledged(&self) -> anyhow::Result<u64> {
        let failed = self.producer.context().failed();
        anyhow::ensure!(failed == 0, "{failed} increments were not acknowledged");
        Ok(self.producer.context().acknowledged())
    }

    async fn send(&self, batch: &mut BatchEncoder, message: &mut Vec<u8>) -> anyhow::Result<u64> {
        let increments = batch.count();
        if increments == 0 {
            return Ok(0);
        }
        message.clear();
        message.extend_from_slice(&wire::prefix(self.schema_id));
        batch.finish(message, None);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.topic, increments)
            .payload(&message[..]);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(increments as u64),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    record = returned;
                    tokio::time::sleep(FULL_QUEUE_PAUSE).await;
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
}
