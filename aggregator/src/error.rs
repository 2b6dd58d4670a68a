use rdkafka::error::KafkaError;
use tally_counts::Rules;
use tally_platform::registry;

/// Why a worker stopped. Everything that passes by itself is retried inside, and is not here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Topic(#[from] tally_kafka::TopicError),
    #[error(
        "topic {deltas} has {have} partitions, {increments} has {need}: \
         each partition of {increments} needs its own in {deltas}, so add to them"
    )]
    TooFewPartitions { deltas: String, have: i32, increments: String, need: i32 },
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("{what}: {source}")]
    Kafka { what: &'static str, source: KafkaError },
    #[error(
        "topic {topic} was deleted and made again: its id was {was}, and is {is}. \
         The counts and the group's offsets are those of the old topic"
    )]
    TopicReplaced { topic: String, was: String, is: String },
    #[error(
        "topic {topic}, partition {partition}: up to offset {next} it was counted by other rules: \
         {have}, but the configuration says {want}"
    )]
    OtherRules { topic: String, partition: i32, next: i64, have: String, want: Rules },
    #[error(
        "another process uses the transactional id {0}: \
         give each aggregator an instance name of its own"
    )]
    Fenced(String),
    #[error(
        "a call of a Kafka transaction has not come back, long after its time: \
         start this process again. Whoever has its partitions then counts what it did not commit"
    )]
    Stuck,
    #[error(transparent)]
    LeftOut(#[from] tally_kafka::LeftOut),
}

impl Error {
    pub(crate) fn kafka(what: &'static str) -> impl FnOnce(KafkaError) -> Error {
        move |source| Error::Kafka { what, source }
    }
}
