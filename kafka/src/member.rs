//! A consumer's standing in its group, as it goes with the offsets of a transaction.

use std::ffi::CStr;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka_sys as sys;

/// The name that the group gave a consumer when it joined: another one each time that it joins
/// anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member(Vec<u8>);

impl Member {
    /// As what this consumer is in its group right now; `None` if it is no member.
    pub fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Member> {
        Standing::of(consumer).map(|standing| standing.member)
    }
}

/// The group's metadata of a consumer that is this member right now; `None` if it is not, or not
/// any more.
///
/// A transaction's offsets that name no member and no generation are taken by the broker without
/// asking whether anybody else has the partitions by now: old clients send them so. That is what
/// the metadata of a consumer says that was thrown out of its group and does not know it for long,
/// and it must never be sent.
///
/// As long as the name stays, no other consumer has had a partition of this one: the group gives a
/// new one to whoever comes back after it was left out. The generation says less: it is another one
/// after each rebalance, also for partitions that stay where they are.
pub fn group_metadata<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    member: &Member,
) -> Option<ConsumerGroupMetadata> {
    let before = Standing::of(consumer);
    let metadata = consumer.group_metadata()?;
    // The wrapper's metadata cannot be looked into; what stands the same before and after it is
    // what it says.
    (before.as_ref().is_some_and(|before| before.member == *member)
        && before == Standing::of(consumer))
    .then_some(metadata)
}

#[derive(PartialEq, Eq)]
struct Standing {
    member: Member,
    generation: i32,
}

impl Standing {
    fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Standing> {
        // SAFETY: the client lives as long as `consumer`; the metadata is checked for null, its
        // member's name is copied while it lives, and it is destroyed once.
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
            Standing { member: Member(member), generation }
        };
        (!standing.member.0.is_empty() && standing.generation >= 0).then_some(standing)
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
