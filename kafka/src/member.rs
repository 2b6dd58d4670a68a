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

/// How often metadata is taken before it is given up. A new generation takes several answers of the
/// broker, two looks take none.
const TAKES: usize = 5;

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
/// changes with each rebalance, also for partitions that stay where they are. There is one case in
/// which that is not so: where a topic gets partitions while this member lets some go, librdkafka
/// joins again as if they had been let go (docs/faults.md).
pub fn group_metadata<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    member: &Member,
) -> Option<ConsumerGroupMetadata> {
    take_between_looks(member, || MemberAndGeneration::of(consumer), || consumer.group_metadata())
}

/// Takes what `take` gives, once `look` sees this member with the same generation before and after:
/// rdkafka's metadata cannot be read, so only the two looks tell what it says.
///
/// A generation that begins between the looks is no reason to give up. Each time that another
/// member joins or leaves, this one goes into the next generation under its own member id, and
/// metadata that is taken a moment later is good. So it is taken again, at most [`TAKES`] times.
fn take_between_looks<T>(
    member: &Member,
    look: impl Fn() -> Option<MemberAndGeneration>,
    take: impl Fn() -> Option<T>,
) -> Option<T> {
    let mut before = look()?;
    for _ in 0..TAKES {
        let taken = take()?;
        let after = look()?;
        if after.member != *member {
            return None;
        }
        if before == after {
            return Some(taken);
        }
        before = after;
    }
    None
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
    use std::cell::Cell;
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

    /// How often metadata is taken in vain, if the looks see these one after the other, and then
    /// the last one for ever; `None` if it is given up.
    fn taken_in_vain(looks: &[Option<(&str, i32)>]) -> Option<usize> {
        let (seen, taken) = (Cell::new(0), Cell::new(0));
        let next = |count: &Cell<usize>| count.replace(count.get() + 1);
        let look = || {
            let seen = looks[next(&seen).min(looks.len() - 1)];
            seen.map(|(id, generation)| {
                let member = Member(id.into());
                MemberAndGeneration { member, generation }
            })
        };
        take_between_looks(&Member("a".into()), look, || Some(next(&taken)))
    }

    #[test]
    fn metadata_is_taken_again_where_a_generation_begins_meanwhile() {
        assert_eq!(taken_in_vain(&[Some(("a", 3))]), Some(0));
        assert_eq!(taken_in_vain(&[Some(("a", 3)), Some(("a", 4))]), Some(1));
        assert_eq!(taken_in_vain(&[Some(("a", 3)), Some(("a", 4)), Some(("a", 5))]), Some(2));
        // It does not go on for ever.
        let looks: Vec<_> = (0..100).map(|generation| Some(("a", generation))).collect();
        assert_eq!(taken_in_vain(&looks), None);
    }

    #[test]
    fn metadata_is_not_taken_for_another_member_or_none() {
        assert_eq!(taken_in_vain(&[None]), None);
        assert_eq!(taken_in_vain(&[Some(("b", 3))]), None);
        assert_eq!(taken_in_vain(&[Some(("a", 3)), None]), None);
        assert_eq!(taken_in_vain(&[Some(("a", 3)), Some(("b", 4))]), None);
        assert_eq!(taken_in_vain(&[Some(("a", 3)), Some(("a", 4)), None]), None);
        assert_eq!(taken_in_vain(&[Some(("a", 3)), Some(("a", 4)), Some(("b", 5))]), None);
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
