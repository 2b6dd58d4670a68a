//! A request's messages into the log, answered by what became of all of them.
//!
//! ```text
//!  append ─► room for all ─► librdkafka's queue ─► broker     Pending travels with each message:
//!    ▲                            │                  │        the request's place among those in
//!    │ outcome of all             └─────► report ◄───┘        progress, the clock, the way back
//!    └── oneshot of each ◄── Pending::settle (librdkafka's polling thread)
//! ```
//!
//! The accounting is done where the report comes in, not where the request waits: a client that
//! hangs up changes nothing about its message.

mod limit;
mod outcome;
mod persisted;
mod room;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use tally_counts::Position;
use tally_kafka::TopicError;
use tally_platform::config::Config;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::message::{Destination, Message};
use crate::metrics::{InFlight, Metrics};

use outcome::{Report, not_stored, outcome};
use room::{Room, TakenRoom};

const CLIENT_ID: &str = "tally-producer";

/// Librdkafka reports each message at `message.timeout.ms` at the latest, but looks only once a
/// second.
const REPORT_MARGIN: Duration = Duration::from_secs(5);

/// Why an append did not end with a position. Where it is neither [`Error::InPart`] nor
/// [`Error::Unknown`], nothing of the request is in the log for certain.
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
        "{stored} of the request's {messages} messages are in the log, and no others: {reason}"
    )]
    InPart { stored: usize, messages: usize, reason: String },
    #[error("{reason}; the request may be stored, as a whole or in part")]
    Unknown { reason: String },
}

pub(crate) struct KafkaLog {
    config: ClientConfig,
    topic: String,
    metrics: Metrics,
    report_timeout: Duration,
    max_message_bytes: usize,
    room: Room,
    /// How many the topic has, as it was last told; 0 before that.
    partitions: AtomicU32,
    client: RwLock<Arc<Client>>,
}

type Client = ThreadedProducer<Reports>;

impl KafkaLog {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> KafkaResult<KafkaLog> {
        let mut client_config = tally_kafka::producer(&config.kafka.cluster(), CLIENT_ID);
        client_config
            .set("message.timeout.ms", config.producer.delivery_timeout_ms.to_string())
            // As Java's clients do it, so that the same key from either finds the same partition.
            .set("partitioner", "murmur2_random");
        let room = Room::instead_of_limits(&mut client_config);
        let max_message_bytes = client_config.get("message.max.bytes").map(str::parse);
        let Some(Ok(max_message_bytes)) = max_message_bytes else {
            panic!("a producer's message.max.bytes is Tally's: {max_message_bytes:?}");
        };
        let client = client_config.create_with_context(Reports { metrics: metrics.clone() })?;
        Ok(KafkaLog {
            config: client_config,
            topic: config.kafka.increments.clone(),
            metrics,
            report_timeout: Duration::from_millis(config.producer.delivery_timeout_ms)
                + REPORT_MARGIN,
            max_message_bytes,
            room,
            partitions: AtomicU32::new(0),
            client: RwLock::new(Arc::new(client)),
        })
    }

    /// The longest that an append takes.
    pub(crate) fn report_timeout(&self) -> Duration {
        self.report_timeout
    }

    /// Returns once every in-sync replica has all the messages: the position that includes them.
    /// None is handed over before there is room for all.
    pub(crate) async fn append(
        &self,
        messages: &[Message],
        in_flight: InFlight,
    ) -> Result<Position, Error> {
        if messages.iter().any(|message| message.bytes() > self.max_message_bytes) {
            return Err(Error::TooLongForClient);
        }
        let room = self.room.take(messages).ok_or(Error::QueueFull)?;
        let held = Arc::new(Held { _in_flight: in_flight, _room: room });
        let mut handed_over = Vec::with_capacity(messages.len());
        let mut refusal = None;
        for message in messages {
            match self.hand_over(message, &held).await {
                Ok(reported) => handed_over.push(reported),
                Err(error) if handed_over.is_empty() => return Err(not_stored(error)),
                Err(error) => {
                    refusal = Some(Report::NotStored(error));
                    break;
                }
            }
        }
        drop(held);
        let deadline = tokio::time::Instant::now() + self.report_timeout;
        let mut reports = Vec::with_capacity(messages.len());
        for reported in handed_over {
            reports.push(match timeout_at(deadline, reported).await {
                Ok(Ok(report)) => report,
                Ok(Err(_)) | Err(_) => Report::Unknown("no report came".to_owned()),
            });
        }
        if let Some(refusal) = refusal {
            reports.resize(messages.len(), refusal);
        }
        outcome(&reports)
    }

    /// Gives a message to librdkafka, and returns where its report will come; an error if it did
    /// not take the message.
    async fn hand_over(
        &self,
        message: &Message,
        held: &Arc<Held>,
    ) -> KafkaResult<oneshot::Receiver<Report>> {
        let (report, reported) = oneshot::channel();
        let pending = Box::new(Pending {
            started: Instant::now(),
            increments: message.increments,
            held: Arc::clone(held),
            report,
        });
        let client = self.client();
        let (error, pending) = match self.send(&client, message, pending) {
            Ok(()) => return Ok(reported),
            Err(refused) => refused,
        };
        if error != KafkaError::MessageProduction(RDKafkaErrorCode::Fatal) {
            return Err(error);
        }
        let next = self.replace(&client)?;
        // Letting go of a client waits for its thread.
        let dropped = tokio::task::spawn_blocking(move || drop(client));
        let sent = self.send(&next, message, pending).map_err(|(error, _)| error);
        dropped.await.expect("letting go of a client does not panic");
        sent.map(|()| reported)
    }

    fn send(
        &self,
        client: &Client,
        message: &Message,
        pending: Box<Pending>,
    ) -> Result<(), (KafkaError, Box<Pending>)> {
        let record = BaseRecord::<[u8], [u8], _>::with_opaque_to(&self.topic, pending)
            .payload(&message.payload);
        let record = match &message.destination {
            Destination::Partition(partition) => record.partition(*partition),
            Destination::Key(key) => record.key(key),
            Destination::Any => record,
        };
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
        let partitions = tally_kafka::partition_count(self.client().client(), &self.topic)?;
        self.partitions.store(partitions.cast_unsigned(), Ordering::Relaxed);
        Ok(())
    }

    /// How many partitions the topic had when it was last looked at; `None` before that.
    pub(crate) fn partitions(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.partitions.load(Ordering::Relaxed))
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

/// What a request holds until the log has reported on each of its messages.
#[derive(Debug)]
struct Held {
    _in_flight: InFlight,
    _room: TakenRoom,
}

/// A message on its way into the log.
struct Pending {
    started: Instant,
    increments: usize,
    held: Arc<Held>,
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
                    "Kafka did not take a message; its request is not accepted"
                );
            }
            Report::Unknown(error) => {
                metrics.delivery(took, "unknown");
                tracing::warn!(
                    %error,
                    increments = self.increments,
                    "Kafka may or may not have a message; \
                     its request is answered 504, delivery_unknown"
                );
            }
        }
        drop(self.held);
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
            Ok(message) => match tally_kafka::appended_at(message.offset()) {
                Some(offset) => Report::Stored { partition: message.partition(), offset },
                None => Report::Unknown(String::from(
                    "librdkafka reports it as delivered, but no broker told its offset",
                )),
            },
            Err((error, message)) if persisted::is_ruled_out(message) => {
                Report::NotStored(error.clone())
            }
            Err((error, _)) => Report::Unknown(error.to_string()),
        };
        pending.settle(report, &self.metrics);
    }
}
