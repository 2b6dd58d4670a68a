//! The leader epochs that messages and offsets come with. A message is the same message only where
//! its offset and its leader epoch are the same: a log that was cut off and written anew gives its
//! offsets to others, under a later leader (KIP-101).

use std::ffi::CString;

use rdkafka::TopicPartitionList;
use rdkafka::message::BorrowedMessage;
use rdkafka_sys as sys;

/// The epoch of the leader that appended the message; `None` where the broker did not tell.
pub fn message_leader_epoch(message: &BorrowedMessage<'_>) -> Option<i32> {
    // SAFETY: the message is alive.
    known(unsafe { sys::rd_kafka_message_leader_epoch(message.ptr()) })
}

/// The leader epoch that was committed with a partition's offset; `None` where there was none, or
/// the partition is not in the list.
pub fn leader_epoch(list: &TopicPartitionList, topic: &str, partition: i32) -> Option<i32> {
    let element = find(list, topic, partition)?;
    // SAFETY: the element lives as long as the list.
    known(unsafe { sys::rd_kafka_topic_partition_get_leader_epoch(element) })
}

/// Has the epoch committed with a partition's offset.
///
/// # Panics
/// If the partition is not in the list.
pub fn set_leader_epoch(list: &mut TopicPartitionList, topic: &str, partition: i32, epoch: i32) {
    let element = find(list, topic, partition).expect("the partition is in the list");
    // SAFETY: the element lives as long as the list, which is borrowed to be changed.
    unsafe { sys::rd_kafka_topic_partition_set_leader_epoch(element, epoch) }
}

fn find(
    list: &TopicPartitionList,
    topic: &str,
    partition: i32,
) -> Option<*mut sys::rd_kafka_topic_partition_t> {
    let topic = CString::new(topic).ok()?;
    // SAFETY: the list is alive, and the name ends with a zero.
    let found =
        unsafe { sys::rd_kafka_topic_partition_list_find(list.ptr(), topic.as_ptr(), partition) };
    (!found.is_null()).then_some(found)
}

pub(super) fn known(epoch: i32) -> Option<i32> {
    (epoch >= 0).then_some(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_of_one_partition_and_stays_in_copies() {
        let mut list = TopicPartitionList::new();
        list.add_partition("topic", 1);
        list.add_partition("topic", 2);
        set_leader_epoch(&mut list, "topic", 2, 7);
        let copied = list.clone();
        assert_eq!(leader_epoch(&copied, "topic", 2), Some(7));
        assert_eq!(leader_epoch(&copied, "topic", 1), None);
        assert_eq!(leader_epoch(&copied, "other", 2), None);
    }
}
