//! Reads a topic from its beginning to its end, only what was committed, with a plain consumer.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::error::Error;

const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Without a message or an end for so long, the topic cannot be read.
const STALLED: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// Where the partitions of a topic begin and end.
pub(super) struct TopicExtent {
    pub(super) begins: Vec<i64>,
    pub(super) ends: Vec<i64>,
}

pub(super) struct Topic {
    name: String,
    consumer: BaseConsumer,
}

impl Topic {
    pub(super) fn open(bootstrap: &str, name: &str) -> Result<Topic, Error> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("client.id", "audit")
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "audit")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("check.crcs", "true")
            .set("fetch.wait.max.ms", "50")
            .create()
            .map_err(Error::kafka(name))?;
        Ok(Topic { name: name.to_owned(), consumer })
    }

    pub(super) fn extent(&self) -> Result<TopicExtent, Error> {
        let metadata = self.consumer.fetch_metadata(Some(&self.name), CALL_TIMEOUT);
        let metadata = metadata.map_err(Error::kafka(&self.name))?;
        let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        if count == 0 {
            let reason = String::from("it has no partitions");
            return Err(Error::Topic { topic: self.name.clone(), reason });
        }
        let extents = (0..count).map(|number| {
            let number = i32::try_from(number).expect("Kafka's partition numbers have 32 bits");
            self.consumer
                .fetch_watermarks(&self.name, number, CALL_TIMEOUT)
                .map_err(Error::kafka(&self.name))
        });
        let (begins, ends) = extents.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        Ok(TopicExtent { begins, ends })
    }

    /// Hands over every message, each partition's in order.
    pub(super) fn read(
        &self,
        extent: &TopicExtent,
        mut see: impl FnMut(&BorrowedMessage<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut assignment = TopicPartitionList::new();
        for (number, begin) in (0..).zip(&extent.begins) {
            let added = assignment.add_partition_offset(&self.name, number, Offset::Offset(*begin));
            added.map_err(Error::kafka(&self.name))?;
        }
        self.consumer.assign(&assignment).map_err(Error::kafka(&self.name))?;
        let mut open: Vec<i32> = (0..).take(extent.begins.len()).collect();
        let mut heard = Instant::now();
        while !open.is_empty() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    see(&message)?;
                }
                Some(Err(KafkaError::PartitionEOF(number))) => {
                    heard = Instant::now();
                    open.retain(|partition| *partition != number);
                }
                Some(Err(error)) if heard.elapsed() > STALLED => {
                    return Err(Error::kafka(&self.name)(error));
                }
                None if heard.elapsed() > STALLED => {
                    let topic = self.name.clone();
                    return Err(Error::Stalled { topic, waited: STALLED, partitions: open });
                }
                Some(Err(_)) | None => {}
            }
        }
        self.consumer.assign(&TopicPartitionList::new()).map_err(Error::kafka(&self.name))
    }
}

/// The text of a header; `None` where it is not there or no text.
pub(super) fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}
