//! Reads one partition of a topic, up to the end that it has now, or before that where a
//! transaction is open.

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

/// The context of the reader's consumer. The end of a partition is an event that the reader asks
/// for, and no error.
struct ReaderContext;

impl ConsumerContext for ReaderContext {}

impl ClientContext for ReaderContext {
    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            _ => tracing::warn!(%error, reason, "Kafka client in trouble; reading on"),
        }
    }
}

/// A client that asks Kafka about topics, and reads no messages.
pub(crate) fn kafka_client(kafka: &config::Kafka) -> Result<BaseConsumer, Error> {
    tally_kafka::client(&kafka.cluster(), "tally-reconciler")
        .create()
        .map_err(Error::kafka("make a consumer"))
}

/// The committed messages of one partition, in the order of their offsets.
pub(crate) struct PartitionReader {
    consumer: BaseConsumer<ReaderContext>,
    topic: String,
    partition: i32,
    /// The next offset to read.
    next: i64,
    /// The first offset that Kafka has, and the next one that it will give.
    begins: i64,
    end: i64,
}

impl PartitionReader {
    /// From the first offset that Kafka has.
    pub(crate) fn from_the_first(
        kafka: &config::Kafka,
        topic: &str,
        partition: i32,
    ) -> Result<PartitionReader, Error> {
        PartitionReader::new(kafka, topic, partition, 0)
    }

    /// From the offset `from`, or from the first that Kafka has behind it.
    pub(crate) fn new(
        kafka: &config::Kafka,
        topic: &str,
        partition: i32,
        from: i64,
    ) -> Result<PartitionReader, Error> {
        // The group is only a name here: partitions are assigned by hand, and nothing is committed.
        let consumer: BaseConsumer<ReaderContext> =
            tally_kafka::consumer(&kafka.cluster(), "tally-reconciler", "tally-reconciler")
                .set("enable.partition.eof", "true")
                .create_with_context(ReaderContext)
                .map_err(Error::kafka("make a consumer"))?;
        let (begins, end) = tally_kafka::watermarks(consumer.client(), topic, partition)?;
        let next = from.max(begins);
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(next))
            .map_err(Error::kafka("list partitions"))?;
        consumer.assign(&assignment).map_err(Error::kafka("start reading"))?;
        let topic = topic.to_owned();
        Ok(PartitionReader { consumer, topic, partition, next, begins, end })
    }

    /// The first offset that the partition has.
    pub(crate) fn begins(&self) -> i64 {
        self.begins
    }

    /// The next offset that the partition will give.
    pub(crate) fn end(&self) -> i64 {
        self.end
    }

    /// The next message; `None` at the end. Blocks the thread; an error if no message comes for
    /// half a minute.
    pub(crate) fn next(&mut self) -> Result<Option<BorrowedMessage<'_>>, Error> {
        let &mut PartitionReader { partition, end: to, .. } = self;
        let (topic, begun) = (&self.topic, Instant::now());
        while self.next < to {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) if message.offset() >= to => break,
                Some(Ok(message)) => {
                    self.next = next_offset(message.offset());
                    return Ok(Some(message));
                }
                // What is left before the end is markers and aborted messages.
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                None => {}
                Some(Err(error)) => {
                    tracing::warn!(
                        %error,
                        topic,
                        partition,
                        "reading from Kafka failed; reading on"
                    );
                }
            }
            if begun.elapsed() > PATIENCE {
                let (topic, at, seconds) = (topic.to_owned(), self.next, PATIENCE.as_secs());
                return Err(Error::Stuck { topic, partition, at, to, seconds });
            }
        }
        self.next = to;
        Ok(None)
    }
}
