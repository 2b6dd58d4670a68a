//! How far the counts are proven: what `tally reconciler watch` says of each partition of
//! `increments`, and the reader tells those who ask.
//!
//! It is kept in Kafka as the committed offsets of a group that nobody joins, each with a note, so
//! any tool that shows a group's lag shows it too.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

/// What is said of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The next offset: all messages before it are proven. 0 where the counts contradict Kafka.
    pub through: i64,
    pub note: Note,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Note {
    /// Whether the counts are what Kafka comes to.
    pub agrees: bool,
    /// When the round ended that says so, and Kafka's time of the last proven message, in
    /// milliseconds since 1970.
    pub at_ms: i64,
    pub through_ms: Option<i64>,
}

/// The group of a topic's proven offsets.
pub fn group(increments: &str) -> String {
    format!("{increments}.verified")
}

/// Says this of these partitions. `consumer` is of the topic's group.
pub fn publish<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    increments: &str,
    partitions: &BTreeMap<i32, Verified>,
) -> KafkaResult<()> {
    if partitions.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::new();
    for (partition, Verified { through, note }) in partitions {
        let note = serde_json::to_string(note).expect("a note is plain JSON");
        let mut element = list.add_partition(increments, *partition);
        element.set_offset(Offset::Offset(*through))?;
        element.set_metadata(note);
    }
    consumer.commit(&list, CommitMode::Sync)
}

/// What was said last of these partitions; those of which nothing was said are left out. `consumer`
/// is of the topic's group. Blocks the thread for up to `timeout`.
pub fn read<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    increments: &str,
    partitions: i32,
    timeout: Duration,
) -> Result<BTreeMap<i32, Verified>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition(increments, partition);
    }
    let committed = consumer.committed_offsets(list, timeout)?;
    let mut said = BTreeMap::new();
    for element in committed.elements() {
        element.error()?;
        // A note that cannot be read is nobody's word.
        if let (Offset::Offset(through), Ok(note)) =
            (element.offset(), serde_json::from_str(element.metadata()))
        {
            said.insert(element.partition(), Verified { through, note });
        }
    }
    Ok(said)
}
