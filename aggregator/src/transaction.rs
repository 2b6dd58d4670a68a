//! One transaction of a Kafka producer, and what became of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};
use rdkafka::{ClientContext, Message, TopicPartitionList};
use tally_kafka::TRANSACTION_TIMEOUT;

pub(crate) type TransactionalProducer = ThreadedProducer<ConnectionWatch>;

const METADATA_CALL: Duration = Duration::from_secs(5);
/// The pause between two looks at the messages that are on their way.
const DELIVERY_PAUSE: Duration = Duration::from_millis(1);

/// Parts of log lines that are about connections which carried no request of a transaction. The one
/// that asks which brokers there are is closed once that is known, and one that was never made may
/// be given up for another address.
const HARMLESS: [&str; 2] = ["/bootstrap: ", " in state TRY_CONNECT"];

/// How long the calls of a transaction may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// From the transaction's beginning until its offsets are taken.
    pub(crate) fill: Duration,
    /// From the transaction's beginning until it is committed. By then the coordinator, which looks
    /// every ten seconds, has aborted it.
    pub(crate) commit: Duration,
    /// From the begin of the abort to its end.
    pub(crate) abort: Duration,
}

impl Patience {
    /// The longest that a transaction takes, however it ends.
    pub(crate) fn longest(&self) -> Duration {
        self.commit + self.abort
    }
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            fill: TRANSACTION_TIMEOUT,
            commit: TRANSACTION_TIMEOUT + Duration::from_secs(10),
            abort: Duration::from_secs(10),
        }
    }
}

/// Notes whether a producer has lost a connection, so that requests of it may still be on their
/// way.
///
/// When a connection is lost, librdkafka sends unanswered requests again over another one, and
/// tells nobody. The first copy of a request may arrive long after: an EndTxn would end the
/// producer's next transaction halfway, a TxnOffsetCommit would set its offsets back. The broker
/// refuses such copies only once the producer has a new epoch. So a producer that has lost a
/// connection may finish the transaction that it is in, and must not begin another one.
#[derive(Debug, Default)]
pub(crate) struct ConnectionWatch {
    lost: AtomicBool,
    /// Whether a message was reported as delivered, and no broker has told where.
    without_offset: AtomicBool,
}

impl ConnectionWatch {
    /// Makes librdkafka log whatever ends a connection, on the thread that ends it.
    ///
    /// librdkafka leaves out the line for people where it would repeat itself within half a minute,
    /// or where the connection was idle. The line for debugging comes always, and first.
    pub(crate) fn watch(producer: &mut ClientConfig) {
        let debug = producer
            .get("debug")
            .map_or_else(|| String::from("broker"), |own| format!("{own},broker"));
        producer
            .set("debug", debug)
            .set("log.queue", "false")
            .set("log.connection.close", "true")
            .set_log_level(RDKafkaLogLevel::Debug);
    }

    pub(crate) fn was_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Forgets lost connections: the producer has a new epoch, which shuts out older requests.
    pub(crate) fn renew(&self) {
        self.lost.store(false, Ordering::Release);
    }
}

impl ClientContext for ConnectionWatch {
    /// Looks for lost connections and requests that were not answered in time: librdkafka logs each
    /// before it sends again.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if matches!(facility, "FAIL" | "REQTMOUT")
            && !HARMLESS.iter().any(|part| message.contains(part))
        {
            self.lost.store(true, Ordering::Release);
        }
        DefaultProducerContext.log(level, facility, message);
    }

    /// Keeps errors out of the log, where they stand already; the transaction's calls return them.
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "producer");
    }
}

impl ProducerContext for ConnectionWatch {
    type DeliveryOpaque = ();

    /// A message that was not delivered fails its transaction by itself.
    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        if let Ok(message) = delivered
            && tally_kafka::appended_at(message.offset()).is_none()
        {
            self.without_offset.store(true, Ordering::Release);
        }
    }
}

/// Why a transaction did not go through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(
        "the consumer group may have given the partitions to others: this consumer is no member \
         any more, or the group is two generations beyond the last assignment that it took"
    )]
    NotHeld,
    #[error("messages are still on their way, long after the transaction's time")]
    Undelivered,
    #[error(
        "librdkafka reports a message as delivered, but no broker told its offset: it may not be \
         in the log"
    )]
    WithoutOffset,
}

/// What became of a transaction that did not certainly commit. Its producer must not be used again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The coordinator has aborted it: nothing of it will ever be seen.
    #[error("aborted: {0}")]
    Aborted(Cause),
    /// It may have committed, or the producer is broken.
    #[error("outcome unknown: {0}")]
    Unknown(Cause),
    /// A producer with the same id took over in the middle of the transaction.
    #[error("fenced: {0}")]
    Fenced(Cause),
}

/// An open transaction. It borrows its producer, and ending it consumes it.
pub(crate) struct Transaction<'p> {
    producer: &'p TransactionalProducer,
    patience: Patience,
    begun: Instant,
}

impl<'p> Transaction<'p> {
    pub(crate) fn begin(
        producer: &'p TransactionalProducer,
        patience: Patience,
    ) -> Result<Transaction<'p>, Failure> {
        let transaction = Transaction { producer, patience, begun: Instant::now() };
        match producer.begin_transaction() {
            Ok(()) => Ok(transaction),
            Err(error) => Err(transaction.unusable(error)),
        }
    }

    /// Adds a message; waits while the producer's queue is full.
    pub(crate) fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), Cause> {
        let mut asked = false;
        loop {
            let (error, returned) = match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                // The partition was added while this producer was running, which looks for new ones
                // only now and then.
                KafkaError::MessageProduction(RDKafkaErrorCode::UnknownPartition) if !asked => {
                    asked = true;
                    self.producer.client().fetch_metadata(Some(returned.topic), METADATA_CALL)?;
                }
                error => return Err(error.into()),
            }
            record = returned;
        }
    }

    /// Adds the group's offsets.
    pub(crate) fn offsets(
        &self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<(), Cause> {
        let deadline = self.begun + self.patience.fill;
        repeat(deadline, |timeout| {
            self.producer.send_offsets_to_transaction(offsets, group, timeout)
        })?;
        Ok(())
    }

    pub(crate) fn commit(self) -> Result<(), Failure> {
        let deadline = self.begun + self.patience.commit;
        if !self.delivered(deadline) {
            // By now the coordinator has aborted it. To be told so would take as long once more.
            return Err(Failure::Unknown(Cause::Undelivered));
        }
        if self.producer.client().context().without_offset.load(Ordering::Acquire) {
            return Err(self.fail(Cause::WithoutOffset));
        }
        match repeat(deadline, |timeout| self.producer.commit_transaction(timeout)) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(error.into())),
        }
    }

    /// Waits until no message is on its way any more, delivered or not; `false` if some are at the
    /// deadline. The commit call waits for that too, but rust-rdkafka's flush, which it begins
    /// with, waits a tenth of a second at a time, and what was delivered is looked at before.
    fn delivered(&self, deadline: Instant) -> bool {
        while self.producer.in_flight_count() > 0 {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(DELIVERY_PAUSE);
        }
        true
    }

    /// Ends the transaction after `cause`: aborts it where the abort's answer decides the outcome,
    /// or else gives the producer up.
    pub(crate) fn fail(self, cause: Cause) -> Failure {
        match &cause {
            Cause::Kafka(KafkaError::Transaction(inner)) if inner.is_fatal() => {
                self.unusable(cause)
            }
            // The coordinator does not abort what it has committed, so its answer to the abort
            // decides.
            Cause::Kafka(KafkaError::Transaction(inner)) if inner.txn_requires_abort() => {
                self.abort(cause)
            }
            // A message was refused, or a call was never made: nothing can have been committed.
            Cause::Kafka(KafkaError::MessageProduction(_) | KafkaError::MetadataFetch(_))
            | Cause::NotHeld
            | Cause::WithoutOffset => self.abort(cause),
            Cause::Kafka(_) | Cause::Undelivered => Failure::Unknown(cause),
        }
    }

    fn abort(self, cause: Cause) -> Failure {
        let deadline = Instant::now() + self.patience.abort;
        match repeat(deadline, |timeout| self.producer.abort_transaction(timeout)) {
            Ok(()) => Failure::Aborted(cause),
            Err(error) => self.unusable(error),
        }
    }

    /// What an error says that makes the producer unusable. The coordinator also fences a producer
    /// whose transaction has timed out, so only a transaction that is young was taken over.
    fn unusable(&self, cause: impl Into<Cause>) -> Failure {
        let cause = cause.into();
        let Cause::Kafka(error) = &cause else { return Failure::Unknown(cause) };
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch,
            ) if self.begun.elapsed() < self.patience.fill => Failure::Fenced(cause),
            _ => Failure::Unknown(cause),
        }
    }
}

/// Calls until `deadline` as long as librdkafka says that the call may be repeated. Each call gets
/// the time that is left.
pub(crate) fn repeat(
    deadline: Instant,
    mut call: impl FnMut(Duration) -> Result<(), KafkaError>,
) -> Result<(), KafkaError> {
    /// Between two calls, since not every failure has taken time.
    const PAUSE: Duration = Duration::from_millis(20);
    loop {
        match call(deadline.saturating_duration_since(Instant::now())) {
            Err(KafkaError::Transaction(error))
                if error.is_retriable()
                    && !error.txn_requires_abort()
                    && Instant::now() + PAUSE < deadline =>
            {
                tracing::debug!(%error, "repeat a call of the transaction");
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}
