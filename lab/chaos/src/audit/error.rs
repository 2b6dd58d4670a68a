use std::time::Duration;

use rdkafka::error::KafkaError;

/// The auditor itself could not do its work: nothing is known then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the schema registry at {url}: {reason}")]
    Registry { url: String, reason: String },
    #[error("topic {topic}: {source}")]
    Kafka { topic: String, source: KafkaError },
    #[error("topic {topic}: {reason}")]
    Topic { topic: String, reason: String },
    #[error(
        "topic {topic}: no message and no end within {waited:?}, \
         partitions {partitions:?} are not read to their end"
    )]
    Stalled { topic: String, waited: Duration, partitions: Vec<i32> },
    #[error("ClickHouse at {url}: {reason}")]
    Store { url: String, reason: String },
    #[error("an HTTP client: {0}")]
    Http(#[source] reqwest::Error),
    #[error("the load was stopped before")]
    Stopped,
    #[error("a task of the {task} ended by itself: {reason}")]
    Task { task: &'static str, reason: String },
}

impl Error {
    pub(super) fn kafka(topic: &str) -> impl Fn(KafkaError) -> Error + '_ {
        |source| Error::Kafka { topic: topic.to_owned(), source }
    }
}
