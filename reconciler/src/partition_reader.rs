//! Reads one partition of a topic, from one offset up to another.

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

/// Where reading ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// At this next offset; the message before it is in Kafka.
    Offset(i64),
    /// At the end that the partition has now, or before that where a transaction is open.
    End,
}

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
    /// The next offset where reading ends.
    to: i64,
    until: Until,
    /// The first offset that Kafka has.
    begins: i64,
}

impl PartitionReader {
    /// From the first offset that Kafka has.
    pub(crate) fn from_the_first(
        kafka: &config::Kafka,
        topic: &str,
        partition: i32,
        until: Until,
    ) -> Result<PartitionReader, Error> {
        PartitionReader::new(kafka, topic, partition, 0, until)
    }

    /// From the offset `from`, or from the first that Kafka has behind it.
    pub(crate) fn new(
        kafka: &config::Kafka,
        topic: &str,
        partition: i32,
        from: i64,
        until: Until,
    ) -> Result<PartitionReader, Error> {
        // The group is only a name here: partitions are assigned by hand, and nothing is committed.
        let consumer: BaseConsumer<ReaderContext> =
            tally_kafka::consumer(&kafka.cluster(), "tally-reconciler", "tally-reconciler")
                .set("enable.partition.eof", "true")
                .create_with_context(ReaderContext)
                .map_err(Error::kafka("make a consumer"))?;
        let (begins, end) = tally_kafka::watermarks(consumer.client(), topic, partition)?;
        let to = match until {
            Until::Offset(next) => next,
            Until::End => end,
        };
        let next = from.max(begins);
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(next))
            .map_err(Error::kafka("list partitions"))?;
        consumer.assign(&assignment).map_err(Error::kafka("start reading"))?;
        let topic = topic.to_owned();
        Ok(PartitionReader { consumer, topic, partition, next, to, until, begins })
    }

    pub(crate) fn begins(&self) -> i64 {
        self.begins
    }

    /// The next message; `None` at the end. Blocks the thread; an error if no message comes for
    /// half a minute.
    pub(crate) fn next(&mut self) -> Result<Option<BorrowedMessage<'_>>, Error> {
        let &mut PartitionReader { partition, to, .. } = self;
        let (topic, begun) = (&self.topic, Instant::now());
        while self.next < to {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) if message.offset() >= to => break,
                Some(Ok(message)) => {
                    self.next = next_offset(message.offset());
                    return Ok(Some(message));
                }
                // What is left before the end is markers and aborted messages.
                Some(Err(KafkaError::PartitionEOF(_))) if matches!(self.until, Until::End) => break,
                Some(Err(KafkaError::PartitionEOF(_))) | None => {}
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
