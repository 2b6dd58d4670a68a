use rdkafka::error::KafkaError;
use tally_service::kafka;

/// Why the sink stopped. A store or broker that is away is waited for, and a broken partition stops alone: neither is here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Topic(#[from] kafka::TopicError),
    #[error("{what}: {source}")]
    Kafka { what: &'static str, source: KafkaError },
    /// librdkafka does not say which of the partitions it is, but in its own log.
    #[error("topic {topic}: one of the ledger's positions is not in the log any more: {source}")]
    OffsetGone { topic: String, source: KafkaError },
}

impl Error {
    pub(crate) fn kafka(what: &'static str) -> impl FnOnce(KafkaError) -> Error {
        move |source| Error::Kafka { what, source }
    }
}
