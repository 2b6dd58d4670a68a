//! Reading a stretch of one partition, from the log's beginning up to an offset.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_counts::next_offset;
use tally_platform::config;

use crate::Error;

/// Without a message for so long, something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

/// Where a stretch ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// At this next offset, the message before which is in the log.
    Offset(i64),
    /// At the end that the partition has now, or where a transaction is open before that.
    End,
}

/// The end of a partition is what a replay asks for, and no error.
struct Replaying;

impl ConsumerContext for Replaying {}

impl ClientContext for Replaying {
    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            _ => tracing::warn!(%error, reason, "librdkafka"),
        }
    }
}

/// Calls `each` for every committed message of the partition up to `until`, in order.
pub(crate) fn replay(
    kafka: &config::Kafka,
    topic: &str,
    partition: i32,
    until: Until,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    // The group is only a name here: partitions are assigned by hand, and nothing is committed.
    let consumer: BaseConsumer<Replaying> =
        tally_kafka::consumer(&kafka.cluster(), "tally-reconciler", "tally-reconciler")
            .set("enable.partition.eof", "true")
            .create_with_context(Replaying)
            .map_err(Error::kafka("make a consumer"))?;
    let (begins, end) = tally_kafka::watermarks(consumer.client(), topic, partition)?;
    let to = match until {
        Until::Offset(next) => next,
        Until::End => end,
    };
    if begins > 0 && to > 0 {
        return Err(Error::LogBegins { topic: topic.to_owned(), partition, begins });
    }
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(topic, partition, Offset::Offset(0))
        .map_err(Error::kafka("list partitions"))?;
    consumer.assign(&assignment).map_err(Error::kafka("start reading"))?;
    let (mut next, mut last) = (0, Instant::now());
    while next < to {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                if message.offset() >= to {
                    return Ok(());
                }
                each(&message)?;
                next = next_offset(message.offset());
                last = Instant::now();
            }
            // What is left before it is markers and aborted messages.
            Some(Err(KafkaError::PartitionEOF(_))) if matches!(until, Until::End) => {
                return Ok(());
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(Err(error)) => tracing::warn!(%error, topic, partition, "read the log"),
            None => {}
        }
        if last.elapsed() > PATIENCE {
            let seconds = PATIENCE.as_secs();
            return Err(Error::Stuck { topic: topic.to_owned(), partition, at: next, to, seconds });
        }
    }
    Ok(())
}
