use std::path::PathBuf;

use rdkafka::error::KafkaError;
use tally_counts::Rules;
use tally_platform::checkpoint_key::KeyError;
use tally_platform::registry;
use tally_platform::store::SupportError;

/// Why the counts could not be verified. A mismatch is no error: it is a finding of the report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Topic(#[from] tally_kafka::TopicError),
    #[error("{what}: {source}")]
    Kafka { what: &'static str, source: KafkaError },
    #[error("read the ledger in ClickHouse: {0}")]
    Store(#[from] clickhouse::error::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Support(#[from] SupportError),
    #[error(
        "the counts in ClickHouse were made by other rules: {have}, but the configuration says \
         {want}"
    )]
    OtherRules { have: Rules, want: Rules },
    #[error(
        "the counts table in ClickHouse is of format {have}, and this version of Tally reads \
         {want}: run `tally init` to move it on"
    )]
    OtherFormat { have: u32, want: u32 },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("read the checkpoints in {}: {reason}", file.display())]
    CheckpointsFile { file: PathBuf, reason: std::io::Error },
    #[error("topic {topic} was made again: begin to verify anew")]
    TopicMadeAgain { topic: String },
    #[error("a checkpoint needs a key: set reconciler.key_file, and run `tally init` to make one")]
    NoKey,
    #[error("Kafka may not have kept a checkpoint: no broker told its offset")]
    CheckpointNotKept,
    #[error("stopped before the end")]
    Stopped,
    #[error("{0}")]
    Unreadable(String),
    #[error("draw a salt: {0}")]
    Random(getrandom::Error),
    #[error("ClickHouse has no counts table with rules of counting: run `tally init`")]
    NoTable,
    #[error(
        "topic {topic}, partition {partition}: Kafka sent no message for {seconds} s, at offset \
         {at} on the way to {to}"
    )]
    Stuck { topic: String, partition: i32, at: i64, to: i64, seconds: u64 },
    #[error(
        "topic {topic}, partition {partition}: a transaction is open at offset {stable} since \
         {seconds} s, so the messages up to {high} cannot be read"
    )]
    OpenTransaction { topic: String, partition: i32, stable: i64, high: i64, seconds: u64 },
}

impl Error {
    pub(crate) fn kafka(what: &'static str) -> impl FnOnce(KafkaError) -> Error {
        move |source| Error::Kafka { what, source }
    }
}
