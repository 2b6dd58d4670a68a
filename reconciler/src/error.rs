use rdkafka::error::KafkaError;
use tally_service::{kafka, registry};

/// Why nothing could be said about the counts. A mismatch is not here: it is a finding of the report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Topic(#[from] kafka::TopicError),
    #[error("{what}: {source}")]
    Kafka { what: &'static str, source: KafkaError },
    #[error("read the store's ledger: {0}")]
    Store(#[from] clickhouse::error::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("the store's table has buckets of {have} seconds, but counts.bucket_seconds is {want}")]
    BucketWidth { have: u32, want: u32 },
    #[error("the store has no counts table: run `tally init`")]
    NoTable,
    #[error(
        "topic {topic}, partition {partition}: the log begins at offset {begins}, what came before can not be replayed"
    )]
    LogBegins { topic: String, partition: i32, begins: i64 },
    #[error(
        "topic {topic}, partition {partition}: stuck at offset {at} on the way to {to}: {seconds} s without a message"
    )]
    Stuck { topic: String, partition: i32, at: i64, to: i64, seconds: u64 },
    #[error(
        "topic {topic}, partition {partition}, offset {offset}: header {header} is missing or not a number"
    )]
    RejectedHeader { topic: String, partition: i32, offset: i64, header: &'static str },
}

impl Error {
    pub(crate) fn kafka(what: &'static str) -> impl FnOnce(KafkaError) -> Error {
        move |source| Error::Kafka { what, source }
    }
}
