use rdkafka::error::KafkaError;
use tally_platform::registry;
use tally_platform::store::Unsupported;

use crate::proof::Promise;

/// Why the sink stopped. A ClickHouse or a Kafka broker that is away is waited for, and a partition
/// with a [`PartitionError`](crate::partition_error::PartitionError) stops alone: neither is here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Topic(#[from] tally_kafka::TopicError),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("{what}: {source}")]
    Kafka { what: &'static str, source: KafkaError },
    #[error("topic {topic} was deleted and made again: its id was {was} and is {is}")]
    TopicReplaced { topic: String, was: String, is: String },
    #[error("store.url {url}: {reason}")]
    StoreUrl { url: String, reason: String },
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error(
        "ClickHouse {version} breaks a promise that exactly-once rests on: {promise}, but {found}"
    )]
    Promise { version: String, promise: Promise, found: String },
    #[error(transparent)]
    LeftOut(#[from] tally_kafka::LeftOut),
}

impl Error {
    pub(crate) fn kafka(what: &'static str) -> impl FnOnce(KafkaError) -> Error {
        move |source| Error::Kafka { what, source }
    }
}
