use rdkafka::ClientContext;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

/// The context of a consumer whose owner polls it for errors, the end of a partition among them
/// (`enable.partition.eof`). They are not logged a second time.
pub struct ErrorsByPoll;

impl ConsumerContext for ErrorsByPoll {}

impl ClientContext for ErrorsByPoll {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client");
    }
}
