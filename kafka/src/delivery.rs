//! What librdkafka's report on a message is worth.

/// The offset at which the log has a message that librdkafka reports as delivered; `None` if no
/// broker told one, and then the log need not have it.
///
/// librdkafka also reports a message as delivered that a broker has refused, once the broker takes
/// a later one of the same partition (`rd_kafka_dr_implicit_ack`, 2.12): it relies on brokers to
/// take messages of a producer in order only. But where a broker has nothing of a producer in a
/// partition, it takes whatever comes first (since Kafka 2.5, KIP-360). Such a report has no
/// offset, nor has that of a message which the broker takes for a repetition of one that it has.
pub fn appended_at(reported_offset: i64) -> Option<i64> {
    (reported_offset >= 0).then_some(reported_offset)
}
