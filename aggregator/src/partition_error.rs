/// Why nothing more is counted of a partition, while others go on. It takes a person, who mends the
/// topic; then the partition is counted on by whoever takes it on next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartitionError {
    /// Retention took messages that were not counted, or the log was cut off or made anew.
    #[error(
        "topic {topic}, partition {partition}: offset {next} is to be read next, \
         but Kafka has {low} up to {high}: messages in between are not there to be counted"
    )]
    OutOfRange { topic: String, partition: i32, next: i64, low: i64, high: i64 },
    #[error("topic {topic}, partition {partition}: {reason}")]
    Unreadable { topic: String, partition: i32, reason: String },
}
