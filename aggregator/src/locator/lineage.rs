//! Whether the log before a committed offset is still what was counted. A log that was cut off
//! while nobody read it, because its leader died before others had all of it, goes on below that
//! offset with other messages. To read on would pass over these, and totals would keep what the log
//! does not have.
//!
//! The offset was committed with the leader epoch of the message before it: that message must be
//! there, with this epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_kafka::{ErrorsByPoll, message_leader_epoch};

/// A message that is there comes at once. Where a broker gives none, reading on shows why.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// What was committed of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// The next offset.
    pub(super) next: i64,
    /// The leader epoch of the message before it.
    pub(super) epoch: i32,
}

/// For each partition whose log is not what was counted, how that shows. The consumer tells the end
/// of a partition, and reads nothing else meanwhile.
pub(super) fn broken(
    consumer: &BaseConsumer<ErrorsByPoll>,
    topic: &str,
    counted: &BTreeMap<i32, Counted>,
) -> Result<BTreeMap<i32, String>, KafkaError> {
    if counted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut list = TopicPartitionList::new();
    for (partition, Counted { next, .. }) in counted {
        list.add_partition_offset(topic, *partition, Offset::Offset(next - 1))?;
    }
    drain(consumer);
    consumer.assign(&list)?;
    let broken = compare(consumer, topic, counted);
    consumer.unassign()?;
    drain(consumer);
    Ok(broken)
}

/// The end of a partition of one topic must not be taken for that of another topic's, which has the
/// same number.
fn drain(consumer: &BaseConsumer<ErrorsByPoll>) {
    while consumer.poll(Duration::ZERO).is_some() {}
}

fn compare(
    consumer: &BaseConsumer<ErrorsByPoll>,
    topic: &str,
    counted: &BTreeMap<i32, Counted>,
) -> BTreeMap<i32, String> {
    let mut broken = BTreeMap::new();
    let mut open: BTreeSet<i32> = counted.keys().copied().collect();
    let deadline = Instant::now() + PATIENCE;
    while !open.is_empty() && Instant::now() < deadline {
        let (partition, found) = match consumer.poll(POLL) {
            Some(Ok(message)) if message.topic() != topic => continue,
            Some(Ok(message)) => {
                let found = Found { at: message.offset(), epoch: message_leader_epoch(&message) };
                (message.partition(), Some(found))
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => (partition, None),
            Some(Err(error)) => {
                tracing::debug!(%error, "read the last messages that were counted");
                continue;
            }
            None => continue,
        };
        if open.remove(&partition)
            && let Some(reason) = contradiction(counted[&partition], found)
        {
            broken.insert(partition, reason);
        }
    }
    for partition in open {
        tracing::warn!(
            topic,
            partition,
            "Kafka does not give the last message that was counted, so that it is not known \
             whether the log before it was cut off; reading on"
        );
    }
    broken
}

/// The first message from there on where the last counted one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    at: i64,
    epoch: Option<i32>,
}

fn contradiction(Counted { next, epoch }: Counted, found: Option<Found>) -> Option<String> {
    let is = match found {
        Some(Found { at, epoch: Some(is) }) if at == next - 1 && is == epoch => return None,
        // Not known, and no reason to stop.
        Some(Found { at, epoch: None }) if at == next - 1 => return None,
        Some(Found { at, epoch: Some(is) }) if at == next - 1 => {
            format!("the one that is there now of epoch {is}")
        }
        Some(_) | None => String::from("it is not there any more"),
    };
    Some(format!(
        "the log was cut off and written anew: the message at offset {}, the last one that was \
         counted, was of leader epoch {epoch}, and {is}",
        next - 1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_before_the_offset_must_be_the_one_that_was_counted() {
        let counted = Counted { next: 10, epoch: 3 };
        let found = |at, epoch| contradiction(counted, Some(Found { at, epoch }));
        assert_eq!(found(9, Some(3)), None);
        assert_eq!(found(9, None), None);
        for (at, epoch) in [(9, Some(4)), (9, Some(2)), (10, Some(3)), (12, None)] {
            let reason = found(at, epoch).expect("it is another log");
            assert!(reason.contains("offset 9") && reason.contains("epoch 3"), "{reason}");
        }
        assert!(contradiction(counted, None).unwrap().contains("not there any more"));
    }
}
