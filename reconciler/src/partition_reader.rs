//! Reads partitions of topics by hand, each up to the end that it has now, or before that where a
//! transaction is open.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_counts::next_offset;
use tally_kafka::{ErrorsByPoll, TopicError};
use tally_platform::config;

use crate::Error;

/// Without a message for so long, something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// How long a message is waited for that is only asked for its time.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);

/// What comes next in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A message of this time, in milliseconds since 1970.
    Message(Option<i64>),
    /// Nothing but the markers of transactions.
    Nothing,
    Unknown,
}

/// For each partition its first offset and the next one that it will give, or why it was not read.
pub(crate) type AllBounds = BTreeMap<i32, Result<(i64, i64), Error>>;

/// One client for all partitions that are read: to connect takes longer than to read a few
/// messages.
pub(crate) struct PartitionReaders {
    consumer: BaseConsumer<ErrorsByPoll>,
}

/// The committed messages of one partition, in the order of their offsets.
pub(crate) struct PartitionReader<'c> {
    consumer: &'c BaseConsumer<ErrorsByPoll>,
    topic: String,
    partition: i32,
    /// The next offset to read.
    next: i64,
    /// The first offset that Kafka has, and the next one that it will give.
    begins: i64,
    end: i64,
}

impl PartitionReaders {
    pub(crate) fn new(kafka: &config::Kafka) -> Result<PartitionReaders, Error> {
        // The group is only a name here: partitions are assigned by hand, and nothing is committed.
        let consumer =
            tally_kafka::consumer(&kafka.cluster(), "tally-reconciler", "tally-reconciler")
                .set("enable.partition.eof", "true")
                .create_with_context(ErrorsByPoll)
                .map_err(Error::kafka("make a consumer"))?;
        Ok(PartitionReaders { consumer })
    }

    pub(crate) fn topic_id(&self, topic: &str) -> Result<String, TopicError> {
        tally_kafka::topic_id(self.consumer.client(), topic)
    }

    pub(crate) fn partition_count(&self, topic: &str) -> Result<i32, TopicError> {
        tally_kafka::partition_count(self.consumer.client(), topic)
    }

    /// The first offset of a partition, and the next one that a committed message will have.
    pub(crate) fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), TopicError> {
        tally_kafka::watermarks(self.consumer.client(), topic, partition)
    }

    /// Reads partitions side by side, each from its offset, or from the first that Kafka has behind
    /// it, until `each` breaks off or the partition ends. Blocks the thread.
    pub(crate) fn read_all(
        &mut self,
        topic: &str,
        from: &BTreeMap<i32, i64>,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<ControlFlow<()>, Error>,
    ) -> Result<AllBounds, Error> {
        let mut bounds = BTreeMap::new();
        let mut left: BTreeMap<i32, (i64, i64)> = BTreeMap::new();
        let mut assignment = TopicPartitionList::new();
        for (&partition, &from) in from {
            let asked = self.watermarks(topic, partition);
            if let Ok((begins, end)) = asked {
                let next = from.max(begins);
                if next < end {
                    left.insert(partition, (next, end));
                    assignment
                        .add_partition_offset(topic, partition, Offset::Offset(next))
                        .map_err(Error::kafka("list partitions"))?;
                }
            }
            bounds.insert(partition, asked.map_err(Error::from));
        }
        self.assign(&assignment)?;
        let mut heard = Instant::now();
        while !left.is_empty() && heard.elapsed() <= PATIENCE {
            match self.consumer.poll(POLL) {
                None => {}
                Some(Ok(message)) => {
                    let partition = message.partition();
                    // Of one that has ended, what was on its way.
                    let Some((next, to)) = left.get_mut(&partition) else { continue };
                    heard = Instant::now();
                    *next = next_offset(message.offset());
                    let is_within = message.offset() < *to;
                    let has_ended = *next >= *to;
                    if !is_within || each(&message)?.is_break() || has_ended {
                        left.remove(&partition);
                    }
                }
                // What is left before the end is markers and aborted messages.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    left.remove(&partition);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, topic, "reading from Kafka failed; reading on");
                }
            }
        }
        for (partition, (at, to)) in left {
            let (topic, seconds) = (topic.to_owned(), PATIENCE.as_secs());
            bounds.insert(partition, Err(Error::Stuck { topic, partition, at, to, seconds }));
        }
        Ok(bounds)
    }

    /// What comes next in each partition, from its offset on. Where Kafka does not give it soon, it
    /// is unknown.
    pub(crate) fn next_of_each(
        &self,
        topic: &str,
        from: &BTreeMap<i32, i64>,
    ) -> Result<BTreeMap<i32, Next>, Error> {
        let mut assignment = TopicPartitionList::new();
        for (&partition, &next) in from {
            assignment
                .add_partition_offset(topic, partition, Offset::Offset(next))
                .map_err(Error::kafka("list partitions"))?;
        }
        self.assign(&assignment)?;
        let mut found: BTreeMap<i32, Next> = from.keys().map(|p| (*p, Next::Unknown)).collect();
        let mut left = found.len();
        let begun = Instant::now();
        while left > 0 && begun.elapsed() <= SHORT_PATIENCE {
            let (partition, next) = match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    (message.partition(), Next::Message(message.timestamp().to_millis()))
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => (partition, Next::Nothing),
                Some(Err(error)) => {
                    tracing::debug!(%error, topic, "what comes next is not known");
                    continue;
                }
                None => continue,
            };
            if let Some(unknown @ Next::Unknown) = found.get_mut(&partition) {
                *unknown = next;
                left -= 1;
            }
        }
        Ok(found)
    }

    /// From the first offset that Kafka has.
    pub(crate) fn read_from_the_first(
        &mut self,
        topic: &str,
        partition: i32,
    ) -> Result<PartitionReader<'_>, Error> {
        let (begins, end) = self.watermarks(topic, partition)?;
        let next = begins;
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(next))
            .map_err(Error::kafka("list partitions"))?;
        self.assign(&assignment)?;
        let topic = topic.to_owned();
        Ok(PartitionReader { consumer: &self.consumer, topic, partition, next, begins, end })
    }

    /// Reads these partitions from now on. The end of a partition of another topic that was read
    /// before must not be taken for the end of one of these, which has the same number.
    fn assign(&self, partitions: &TopicPartitionList) -> Result<(), Error> {
        self.consumer.unassign().map_err(Error::kafka("stop reading"))?;
        while self.consumer.poll(Duration::ZERO).is_some() {}
        self.consumer.assign(partitions).map_err(Error::kafka("start reading"))
    }
}

impl PartitionReader<'_> {
    /// The first offset that the partition has.
    pub(crate) fn begins(&self) -> i64 {
        self.begins
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
                Some(Err(KafkaError::PartitionEOF(of))) if of == partition => break,
                Some(Err(KafkaError::PartitionEOF(_))) => {}
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
