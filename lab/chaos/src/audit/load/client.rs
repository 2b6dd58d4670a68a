//! A Kafka producer as any client would use it, whose delivery reports go into the record.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, ClientContext};

use crate::audit::live_record::LiveRecord;
use crate::audit::record::State;
use crate::audit::topics::INCREMENTS;

/// The header that the auditor recognises a message by.
pub(in crate::audit) const MARK: &str = "audit.seq";

/// When a message is given up.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Beyond that, what librdkafka takes to notice.
const REPORT_MARGIN: Duration = Duration::from_secs(10);

pub(super) struct Client {
    config: ClientConfig,
    record: Arc<LiveRecord>,
    producer: ThreadedProducer<Reports>,
}

#[derive(Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) mark: u32,
    pub(super) partition: Option<i32>,
    pub(super) payload: &'a [u8],
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum EnqueueResult {
    Queued,
    /// Try again in a moment.
    Full,
    /// It was never on its way, and that is written down.
    Refused,
}

impl Client {
    pub(super) fn new(
        bootstrap: &str,
        settings: &[(&str, &str)],
        record: Arc<LiveRecord>,
    ) -> anyhow::Result<Client> {
        let mut config = ClientConfig::new();
        config
            .set("client.id", "audit-load")
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
            .set("linger.ms", "5")
            .set("queue.buffering.max.messages", "50000")
            .set("reconnect.backoff.max.ms", "1000")
            // Partitions are added meanwhile.
            .set("topic.metadata.refresh.interval.ms", "2000");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let producer = make(&config, &record)?;
        Ok(Client { config, record, producer })
    }

    /// Hands a message to librdkafka. What it becomes is written down when it is known.
    pub(super) async fn send(&mut self, outgoing: Outgoing<'_>) -> anyhow::Result<EnqueueResult> {
        let mut tried = self.try_send(outgoing);
        if matches!(tried, Err(KafkaError::MessageProduction(RDKafkaErrorCode::Fatal))) {
            self.replace().await?;
            tried = self.try_send(outgoing);
        }
        match tried {
            Ok(()) => Ok(EnqueueResult::Queued),
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => {
                Ok(EnqueueResult::Full)
            }
            Err(error @ KafkaError::MessageProduction(_)) => {
                tracing::warn!(%error, mark = outgoing.mark, "the load's producer took no message");
                self.record.settle(outgoing.mark, State::NotApplied, None);
                Ok(EnqueueResult::Refused)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn try_send(&self, outgoing: Outgoing<'_>) -> Result<(), KafkaError> {
        let mark = outgoing.mark.to_string();
        let headers = OwnedHeaders::new().insert(Header { key: MARK, value: Some(&mark) });
        let mut record =
            BaseRecord::<[u8], [u8], usize>::with_opaque_to(INCREMENTS, outgoing.mark as usize)
                .payload(outgoing.payload)
                .headers(headers);
        if let Some(partition) = outgoing.partition {
            record = record.partition(partition);
        }
        self.producer.send(record).map_err(|(error, _)| error)
    }

    /// An idempotent producer that lost its sequence takes no more messages. What it has is given
    /// up, and never sent again.
    async fn replace(&mut self) -> anyhow::Result<()> {
        let next = make(&self.config, &self.record)?;
        let broken = std::mem::replace(&mut self.producer, next);
        tracing::warn!(error = ?broken.client().fatal_error(), "the load's producer is replaced");
        Ok(tokio::task::spawn_blocking(move || drop(broken)).await?)
    }

    /// Returns once each message is settled. Blocks.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        match self.producer.flush(Timeout::After(DELIVERY_TIMEOUT + REPORT_MARGIN)) {
            // What is left then is unknown.
            Ok(()) | Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn make(
    config: &ClientConfig,
    record: &Arc<LiveRecord>,
) -> Result<ThreadedProducer<Reports>, KafkaError> {
    config.create_with_context(Reports(Arc::clone(record)))
}

struct Reports(Arc<LiveRecord>);

impl ClientContext for Reports {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!(?level, fac, message, "the load's producer");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "the load's producer");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, mark: usize) {
        let (state, place) = match result {
            // As clients are told to: librdkafka reports some as delivered that are nowhere.
            Ok(message) if message.offset() >= 0 => {
                (State::Acknowledged, Some((message.partition(), message.offset())))
            }
            Ok(_) | Err(_) => (State::Unknown, None),
        };
        self.0.settle(u32::try_from(mark).expect("marks are 32 bits"), state, place);
    }
}
