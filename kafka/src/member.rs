//! A consumer's member id and generation in its group, which a transaction's offsets are sent with.

use std::ffi::CStr;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka_sys as sys;

/// The member id that the group gave a consumer when it joined. A consumer that joins anew gets a
/// new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member(Vec<u8>);

impl Member {
    /// The member that this consumer is in its group right now; `None` if it is none.
    pub fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Member> {
        MemberAndGeneration::of(consumer).map(|found| found.member)
    }
}

/// The group metadata that a transaction's offsets are sent with, if the consumer is this member
/// right now; `None` if it is another member or none.
///
/// Metadata without a member id and a generation must never be sent. The broker takes offsets with
/// such metadata from anybody, because old clients send them so: it does not check whether another
/// consumer has the partitions by now. librdkafka makes such metadata for a consumer that was
/// thrown out of its group and has just learned of it, which is the very case that the check is
/// for.
///
/// As long as the member id stays the same, no other consumer has had a partition of this one:
/// whoever was thrown out and comes back gets a new member id. The generation tells less, since it
/// changes with each rebalance, also for partitions that stay where they are.
pub fn group_metadata<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    member: &Member,
) -> Option<ConsumerGroupMetadata> {
    let before = MemberAndGeneration::of(consumer);
    let metadata = consumer.group_metadata()?;
    // What rdkafka's metadata says cannot be read. But if member id and generation are the same
    // before it was made and after it, they are what it says.
    (before.as_ref().is_some_and(|before| before.member == *member)
        && before == MemberAndGeneration::of(consumer))
    .then_some(metadata)
}

#[derive(PartialEq, Eq)]
struct MemberAndGeneration {
    member: Member,
    generation: i32,
}

impl MemberAndGeneration {
    fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<MemberAndGeneration> {
        // SAFETY: the client lives as long as `consumer`; the metadata is checked for null, its
        // member id is copied while it lives, and it is destroyed once.
        let found = unsafe {
            let metadata = sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
            if metadata.is_null() {
                return None;
            }
            let member = sys::rd_kafka_consumer_group_metadata_member_id(metadata);
            let member = if member.is_null() {
                Vec::new()
            } else {
                CStr::from_ptr(member).to_bytes().to_vec()
            };
            let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
            sys::rd_kafka_consumer_group_metadata_destroy(metadata);
            MemberAndGeneration { member: Member(member), generation }
        };
        (!found.member.0.is_empty() && found.generation >= 0).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;

    use super::*;
    use crate::Cluster;

    const TOPIC: &str = "topic";

    fn join(cluster: &Cluster, group: &str) -> BaseConsumer {
        let consumer: BaseConsumer = crate::consumer(cluster, "test", group).create().unwrap();
        consumer.subscribe(&[TOPIC]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while Member::of(&consumer).is_none() {
            assert!(Instant::now() < deadline, "the mock's group takes no member");
            consumer.poll(Duration::from_millis(20));
        }
        consumer
    }

    #[test]
    fn metadata_goes_only_to_the_member_that_is_named() {
        let mock: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
        let cluster = Cluster { bootstrap: mock.bootstrap_servers(), properties: BTreeMap::new() };
        mock.create_topic(TOPIC, 1, 1).unwrap();
        let (one, other) = (join(&cluster, "a"), join(&cluster, "b"));
        let (is, was) = (Member::of(&one).unwrap(), Member::of(&other).unwrap());
        assert!(group_metadata(&one, &is).is_some());
        assert!(group_metadata(&one, &was).is_none());
        one.unsubscribe();
        let deadline = Instant::now() + Duration::from_secs(60);
        while group_metadata(&one, &is).is_some() {
            assert!(Instant::now() < deadline, "what has left is a member still");
            one.poll(Duration::from_millis(20));
        }
    }
}
