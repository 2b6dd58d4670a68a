use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::util::Timeout;

pub(crate) type TransactionalProducer = ThreadedProducer<DefaultProducerContext>;

/// How long one call may take; librdkafka goes on with it in the background.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a call that says it may be repeated is repeated.
const REPEATS: usize = 6;

/// What became of a transaction that did not certainly commit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nothing of it will ever be seen; the producer is as good as new.
    #[error("aborted: {0}")]
    Aborted(KafkaError),
    /// It may have committed, or the producer is broken: this producer must not be used again.
    #[error("outcome unknown: {0}")]
    Unknown(KafkaError),
    /// A producer with the same id took over.
    #[error("fenced: {0}")]
    Fenced(KafkaError),
}

/// An open transaction: it borrows its producer, and ending it consumes it.
pub(crate) struct Transaction<'p> {
    producer: &'p TransactionalProducer,
}

impl<'p> Transaction<'p> {
    pub(crate) fn begin(producer: &'p TransactionalProducer) -> Result<Transaction<'p>, Failure> {
        match producer.begin_transaction() {
            Ok(()) => Ok(Transaction { producer }),
            Err(error) => Err(Self::unusable(error)),
        }
    }

    /// Adds a message; waits while the producer's queue is full.
    pub(crate) fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), KafkaError> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    record = returned;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Adds the group's offsets.
    pub(crate) fn offsets(
        &self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<(), KafkaError> {
        repeat(|| self.producer.send_offsets_to_transaction(offsets, group, CALL_TIMEOUT))
    }

    /// Commits. The call's own timeout is what remains of the transaction's.
    pub(crate) fn commit(self) -> Result<(), Failure> {
        match repeat(|| self.producer.commit_transaction(Timeout::Never)) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Ends the transaction after `error`: aborts it where that says enough, or gives the producer up.
    pub(crate) fn fail(self, error: KafkaError) -> Failure {
        match &error {
            KafkaError::Transaction(inner) if inner.is_fatal() => Self::unusable(error),
            // A call that was never let through, or a message that was refused, or an abortable error.
            KafkaError::Transaction(inner) if inner.txn_requires_abort() => self.abort(error),
            KafkaError::MessageProduction(_) => self.abort(error),
            _ => Failure::Unknown(error),
        }
    }

    fn abort(self, cause: KafkaError) -> Failure {
        match repeat(|| self.producer.abort_transaction(CALL_TIMEOUT)) {
            Ok(()) => Failure::Aborted(cause),
            Err(error) => Self::unusable(error),
        }
    }

    fn unusable(error: KafkaError) -> Failure {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced) => Failure::Fenced(error),
            _ => Failure::Unknown(error),
        }
    }
}

/// Calls again while the error says that this is what to do, a bounded number of times.
pub(crate) fn repeat(mut call: impl FnMut() -> Result<(), KafkaError>) -> Result<(), KafkaError> {
    let mut repeats = 0;
    loop {
        match call() {
            Err(KafkaError::Transaction(error))
                if error.is_retriable() && !error.txn_requires_abort() && repeats < REPEATS =>
            {
                repeats += 1;
                tracing::debug!(%error, repeats, "repeat a transaction call");
            }
            outcome => return outcome,
        }
    }
}
