use rdkafka::error::KafkaError;
use tally_service::{kafka, registry};

/// Why a worker stopped. Everything that passes by itself is retried inside, and is not here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Topic(#[from] kafka::TopicError),
    #[error(
        "topic {deltas} has {have} partitions, {increments} has {need}: each source partition has its own in {deltas}"
    )]
    TooFewPartitions { deltas: String, have: i32, increments: String, need: i32 },
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("{what}: {source}")]
    Kafka { what: &'static str, source: KafkaError },
    /// Among them: an offset that is not in the log any more.
    #[error("topic {topic}, partition {partition}: {reason}")]
    Partition { topic: String, partition: i32, reason: String },
    #[error(
        "another process uses the transactional id {0}: give each aggregator an instance name of its own"
    )]
    Fenced(String),
    #[error("the transaction coordinator does not answer: {0}")]
    Coordinator(String),
}

impl Error {
    pub(crate) fn kafka(what: &'static str) -> impl FnOnce(KafkaError) -> Error {
        move |source| Error::Kafka { what, source }
    }
}
