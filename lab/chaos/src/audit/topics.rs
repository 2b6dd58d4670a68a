//! Reads a topic from its beginning to its end, only what was committed, with a plain consumer.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

pub(super) const INCREMENTS: &str = "increments";
pub(super) const DELTAS: &str = "deltas";
pub(super) const REJECTED: &str = "increments.rejected";

const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Without a message or an end for so long, the topic cannot be read.
const STALLED: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

pub(super) struct TopicExtent {
    pub(super) begins: Vec<i64>,
    pub(super) ends: Vec<i64>,
}

pub(super) struct Topic {
    name: &'static str,
    consumer: BaseConsumer,
}

impl Topic {
    pub(super) fn open(bootstrap: &str, name: &'static str) -> anyhow::Result<Topic> {
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
            // Nor is a batch decompressed that comes to more.
            .set("receive.message.max.bytes", "1000000000")
            .create()?;
        Ok(Topic { name, consumer })
    }

    pub(super) fn extent(&self) -> anyhow::Result<TopicExtent> {
        let metadata = self.consumer.fetch_metadata(Some(self.name), CALL_TIMEOUT)?;
        let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        ensure!(count > 0, "topic {} has no partitions", self.name);
        let extents = (0..).take(count).map(|number| {
            let extent = self.watermarks(number);
            extent.with_context(|| format!("topic {}, partition {number}", self.name))
        });
        let (begins, ends) = extents.collect::<anyhow::Result<Vec<_>>>()?.into_iter().unzip();
        Ok(TopicExtent { begins, ends })
    }

    /// A broker that has just become the leader may not know it yet, and is asked again.
    fn watermarks(&self, partition: i32) -> Result<(i64, i64), KafkaError> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        loop {
            match self.consumer.fetch_watermarks(self.name, partition, CALL_TIMEOUT) {
                Err(_) if Instant::now() < deadline => thread::sleep(POLL),
                outcome => return outcome,
            }
        }
    }

    /// Hands over every message, each partition's in order.
    pub(super) fn read(
        &self,
        extent: &TopicExtent,
        mut see: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let name = self.name;
        let mut assignment = TopicPartitionList::new();
        for (number, begin) in (0..).zip(&extent.begins) {
            assignment.add_partition_offset(name, number, Offset::Offset(*begin))?;
        }
        self.consumer.assign(&assignment)?;
        let mut open: Vec<i32> = (0..).take(extent.begins.len()).collect();
        let mut heard = Instant::now();
        while !open.is_empty() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    see(&message).with_context(|| {
                        format!("topic {name}, {}:{}", message.partition(), message.offset())
                    })?;
                }
                Some(Err(KafkaError::PartitionEOF(number))) => {
                    heard = Instant::now();
                    open.retain(|partition| *partition != number);
                }
                Some(Err(error)) if heard.elapsed() > STALLED => {
                    return Err(error).with_context(|| format!("topic {name}"));
                }
                None if heard.elapsed() > STALLED => bail!(
                    "topic {name}: no message and no end within {STALLED:?}, \
                     partitions {open:?} are not read to their end"
                ),
                Some(Err(_)) | None => {}
            }
        }
        Ok(self.consumer.assign(&TopicPartitionList::new())?)
    }
}

/// The text of a header; `None` where it is not there or no text.
pub(super) fn header<'m>(message: &'m BorrowedMessage<'_>, name: &str) -> Option<&'m str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}
