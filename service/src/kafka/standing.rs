//! A consumer's standing in its group, as it goes with the offsets of a transaction.

use std::ffi::CStr;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka_sys as sys;

/// The group's metadata of a consumer that is a member right now; `None` if it is not.
///
/// A transaction's offsets that name no member and no generation are taken by the broker without asking whether anybody else
/// has the partitions by now: old clients send them so. That is what the metadata of a consumer says that was thrown
/// out of its group and does not know it for long, and it must never be sent.
pub fn group_metadata<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<ConsumerGroupMetadata> {
    let before = Standing::of(consumer);
    let metadata = consumer.group_metadata()?;
    // The wrapper's metadata cannot be looked into; what stands the same before and after it is what it says.
    (before.is_some() && before == Standing::of(consumer)).then_some(metadata)
}

#[derive(PartialEq, Eq)]
struct Standing {
    member: Vec<u8>,
    generation: i32,
}

impl Standing {
    fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Standing> {
        // SAFETY: the client lives as long as `consumer`; the metadata is checked for null, its member's name is copied while
        // it lives, and it is destroyed once.
        let standing = unsafe {
            let metadata = sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
            if metadata.is_null() {
                return None;
            }
            let member = sys::rd_kafka_consumer_group_metadata_member_id(metadata);
            let member = match member.is_null() {
                true => Vec::new(),
                false => CStr::from_ptr(member).to_bytes().to_vec(),
            };
            let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
            sys::rd_kafka_consumer_group_metadata_destroy(metadata);
            Standing { member, generation }
        };
        (!standing.member.is_empty() && standing.generation >= 0).then_some(standing)
    }
}
