//! Messages into the log, each answered by what became of it.
//!
//! ```text
//!  append ─► librdkafka's queue ─► broker     Pending travels with the message: its place among
//!    ▲            │                  │        the requests in progress, the clock, the way back
//!    │            └─────► report ◄───┘
//!    └── oneshot ◄─ Pending::settle (librdkafka's polling thread)
//! ```
//!
//! The accounting is done where the report comes in, not where the request waits: a client that
//! hangs up changes nothing about its message.

mod limit;
mod persisted;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use tally_counts::{Position, next_offset};
use tally_kafka::TopicError;
use tally_platform::config::Config;
use tokio::sync::oneshot;

use crate::message::Message;
use crate::metrics::{InFlight, Metrics};

const CLIENT_ID: &str = "tally-producer";

/// Librdkafka reports each message at `message.timeout.ms` at the latest, but looks only once a
/// second.
const REPORT_MARGIN: Duration = Duration::from_secs(5);

const TOO_LONG: KafkaError = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);

/// Why an append did not end with a position. Where it is not [`Error::Unknown`], the message is
/// certainly not in the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the queue to the log is full")]
    QueueFull,
    #[error("it is longer than any message of the log may be")]
    TooLongForClient,
    #[error("it is longer than the topic's max.message.bytes")]
    TooLongForTopic,
    #[error("{0}")]
    NotDelivered(KafkaError),
    #[error(
        "{reason}; the increments may have been counted: only with the Idempotency-Key of this \
         request is it safe to send it again"
    )]
    Unknown { reason: String },
}

pub(crate) struct KafkaLog {
    config: ClientConfig,
    topic: String,
    metrics: Metrics,
    report_timeout: Duration,
    client: RwLock<Arc<Client>>,
}

type Client = ThreadedProducer<Reports>;

/// What became of a message.
#[derive(Debug)]
enum Report {
    Stored {
        partition: i32,
        /// Unknown when the broker recognised a repetition whose first copy it no longer has at
        /// hand.
        offset: Option<i64>,
    },
    /// Certainly not in the log.
    NotStored(KafkaError),
    /// It may be in the log.
    Unknown(KafkaError),
}

impl KafkaLog {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> KafkaResult<KafkaLog> {
        let mut client_config = tally_kafka::producer(&config.kafka.cluster(), CLIENT_ID);
        client_config
            .set("message.timeout.ms", config.producer.delivery_timeout_ms.to_string())
            // As Java's clients do it, so that the same key from either finds the same partition.
            .set("partitioner", "murmur2_random");
        let client = client_config.create_with_context(Reports { metrics: metrics.clone() })?;
        Ok(KafkaLog {
            config: client_config,
            topic: config.kafka.increments.clone(),
            metrics,
            report_timeout: Duration::from_millis(config.producer.delivery_timeout_ms)
                + REPORT_MARGIN,
            client: RwLock::new(Arc::new(client)),
        })
    }

    /// The longest that an append takes.
    pub(crate) fn report_timeout(&self) -> Duration {
        self.report_timeout
    }

    /// Returns once every in-sync replica has the message: the position that includes it, where the
    /// broker tells it.
    pub(crate) async fn append(
        &self,
        message: &Message,
        in_flight: InFlight,
    ) -> Result<Option<Position>, Error> {
        let (report, reported) = oneshot::channel();
        let pending =
            Pending { started: Instant::now(), increments: message.increments, in_flight, report };
        self.enqueue(message, Box::new(pending)).await?;
        match tokio::time::timeout(self.report_timeout, reported).await {
            Ok(Ok(report)) => answer(report),
            Ok(Err(_)) | Err(_) => Err(Error::Unknown { reason: "no report came".to_owned() }),
        }
    }

    async fn enqueue(&self, message: &Message, pending: Box<Pending>) -> Result<(), Error> {
        let client = self.client();
        let (error, pending) = match self.send(&client, message, pending) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        if error != KafkaError::MessageProduction(RDKafkaErrorCode::Fatal) {
            return Err(not_enqueued(error));
        }
        let next = self.replace(&client).map_err(Error::NotDelivered)?;
        // Letting go of a client waits for its thread.
        let dropped = tokio::task::spawn_blocking(move || drop(client));
        let sent = self.send(&next, message, pending).map_err(|(error, _)| not_enqueued(error));
        dropped.await.expect("letting go of a client does not panic");
        sent
    }

    fn send(
        &self,
        client: &Client,
        message: &Message,
        pending: Box<Pending>,
    ) -> Result<(), (KafkaError, Box<Pending>)> {
        let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(&self.topic, pending)
            .payload(&message.payload);
        if let Some(key) = &message.key {
            record = record.key(key);
        }
        client.send(record).map_err(|(error, record)| (error, record.delivery_opaque))
    }

    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// An idempotent producer that has lost its sequence takes no more messages. What it had in its
    /// queue is reported as not stored or unknown, and never sent again, so a new producer cannot
    /// store it twice.
    fn replace(&self, broken: &Arc<Client>) -> KafkaResult<Arc<Client>> {
        let mut current = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, broken) {
            if let Some((code, reason)) = broken.client().fatal_error() {
                tracing::error!(
                    %code, reason,
                    "the Kafka producer failed for good and is replaced"
                );
            }
            *current = Arc::new(
                self.config.create_with_context(Reports { metrics: self.metrics.clone() })?,
            );
        }
        Ok(Arc::clone(&current))
    }

    /// Whether a broker answers and the topic is there. Blocks.
    pub(crate) fn check(&self) -> Result<(), TopicError> {
        tally_kafka::partition_count(self.client().client(), &self.topic).map(|_| ())
    }

    /// The topic's `max.message.bytes`.
    pub(crate) async fn max_message_bytes(&self) -> Result<usize, limit::Error> {
        limit::max_message_bytes(&self.config, &self.topic).await
    }

    /// Blocks until everything that was taken is reported.
    pub(crate) fn flush(&self) -> KafkaResult<()> {
        self.client().flush(self.report_timeout)
    }
}

fn answer(report: Report) -> Result<Option<Position>, Error> {
    match report {
        Report::Stored { partition, offset } => {
            Ok(offset.map(|offset| Position::from_iter([(partition, next_offset(offset))])))
        }
        Report::NotStored(TOO_LONG) => Err(Error::TooLongForTopic),
        Report::NotStored(error) => Err(Error::NotDelivered(error)),
        Report::Unknown(error) => Err(Error::Unknown { reason: error.to_string() }),
    }
}

fn not_enqueued(error: KafkaError) -> Error {
    match error {
        KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => Error::QueueFull,
        TOO_LONG => Error::TooLongForClient,
        error => Error::NotDelivered(error),
    }
}

/// A message on its way into the log.
struct Pending {
    started: Instant,
    increments: usize,
    in_flight: InFlight,
    report: oneshot::Sender<Report>,
}

impl Pending {
    fn settle(self, report: Report, metrics: &Metrics) {
        let took = self.started.elapsed();
        match &report {
            Report::Stored { .. } => metrics.delivered(self.increments, took),
            Report::NotStored(error) => {
                metrics.delivery(took, "not_stored");
                tracing::warn!(
                    %error,
                    increments = self.increments,
                    "Kafka did not take a message; its request is refused"
                );
            }
            Report::Unknown(error) => {
                metrics.delivery(took, "unknown");
                tracing::warn!(
                    %error,
                    increments = self.increments,
                    "Kafka may or may not have a message; \
                     its request is answered 503, delivery_unknown"
                );
            }
        }
        drop(self.in_flight);
        if self.report.send(report).is_err() {
            tracing::debug!("the client was gone before its answer");
        }
    }
}

/// Receives librdkafka's reports.
struct Reports {
    metrics: Metrics,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        match error {
            // Said at every try to connect; readiness tells it once.
            KafkaError::Global(
                RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve,
            ) => tracing::debug!(%error, reason, "Kafka is out of reach; librdkafka reconnects"),
            _ => {
                tracing::warn!(
                    %error, reason,
                    "the Kafka producer reports a problem; librdkafka goes on"
                );
            }
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Pending>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, pending: Box<Pending>) {
        let report = match delivered {
            Ok(message) => {
                Report::Stored { partition: message.partition(), offset: known(message.offset()) }
            }
            Err((error, message)) if persisted::is_ruled_out(message) => {
                Report::NotStored(error.clone())
            }
            Err((error, _)) => Report::Unknown(error.clone()),
        };
        pending.settle(report, &self.metrics);
    }
}

fn known(offset: i64) -> Option<i64> {
    (offset >= 0).then_some(offset)
}
