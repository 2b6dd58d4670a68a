//! A consumer's member id and generation in its group, which a transaction's offsets are sent with.

use std::ffi::CStr;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka_sys as sys;

/// What a consumer is in its group: the member id that it got when it joined, which is another one
/// once it joins anew, and the generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    id: Vec<u8>,
    generation: i32,
}

/// How often metadata is taken before it is given up. A new generation takes several answers of the
/// broker, two looks take none.
const TAKES: usize = 5;

/// The group metadata that a transaction's offsets are sent with, if the consumer may have what it
/// held as this member; `None` if others may have it by now, or it is none.
///
/// Metadata without a member id and a generation must never be sent. The broker takes offsets with
/// such metadata from anybody, because old clients send them so: it does not check whether another
/// consumer has the partitions by now. librdkafka makes such metadata for a consumer that was
/// thrown out of its group and has just learned of it, which is the very case that the check is
/// for.
///
/// Whoever was thrown out and comes back gets a new member id, so under another one everything may
/// be somebody else's. Under the same one the generation tells. `member` is what the consumer was
/// when it last took an assignment. In the next generation each partition is still its own: it goes
/// into it with all of them, and the group gives none away that was not let go. In later ones that
/// may not be so. librdkafka waits until what the group takes is let go before it joins again, but
/// for one case: where the topic's partitions change meanwhile it joins at once, as if it had been
/// let go (`rd_kafka_cgrp_metadata_update_check`, librdkafka 2.12). Should they change twice before
/// an assignment is taken, its generation is not the one that is noted; then the sink, which takes
/// no batch that overlaps another one, is what is left.
pub fn group_metadata<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    member: &Member,
) -> Option<ConsumerGroupMetadata> {
    take_between_looks(member, || Member::of(consumer), || consumer.group_metadata())
}

/// Takes what `take` gives, once `look` sees the same before and after, and that has what `member`
/// had: rdkafka's metadata cannot be read, so only the two looks tell what it says.
///
/// A generation that begins between the looks is no reason to give up. Each time that another
/// member joins or leaves, this one goes into the next generation under its own member id, and
/// metadata that is taken a moment later is good. So it is taken again, at most [`TAKES`] times.
fn take_between_looks<T>(
    member: &Member,
    look: impl Fn() -> Option<Member>,
    take: impl Fn() -> Option<T>,
) -> Option<T> {
    let mut before = look()?;
    for _ in 0..TAKES {
        let taken = take()?;
        let after = look()?;
        if !after.has_what_was_held_as(member) {
            return None;
        }
        if before == after {
            return Some(taken);
        }
        before = after;
    }
    None
}

impl Member {
    /// Whether both are one member, of whichever generation. A consumer that joins anew is another.
    pub fn is_same(&self, other: &Member) -> bool {
        self.id == other.id
    }

    pub(crate) fn generation(&self) -> i32 {
        self.generation
    }

    fn has_what_was_held_as(&self, before: &Member) -> bool {
        let generations = self.generation.checked_sub(before.generation);
        self.is_same(before) && generations.is_some_and(|count| (0..=1).contains(&count))
    }

    /// What this consumer is in its group right now; `None` if it is no member.
    pub fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Member> {
        // SAFETY: the client lives as long as `consumer`; the metadata is checked for null, its
        // member id is copied while it lives, and it is destroyed once.
        let found = unsafe {
            let metadata = sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
            if metadata.is_null() {
                return None;
            }
            let id = sys::rd_kafka_consumer_group_metadata_member_id(metadata);
            let id = if id.is_null() { Vec::new() } else { CStr::from_ptr(id).to_bytes().to_vec() };
            let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
            sys::rd_kafka_consumer_group_metadata_destroy(metadata);
            Member { id, generation }
        };
        (!found.id.is_empty() && found.generation >= 0).then_some(found)
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
            seen.map(|(id, generation)| Member { id: id.into(), generation })
        };
        let held_as = Member { id: "a".into(), generation: 3 };
        take_between_looks(&held_as, look, || Some(next(&taken)))
    }

    #[test]
    fn metadata_is_taken_again_where_a_generation_begins_meanwhile() {
        assert_eq!(taken_in_vain(&[Some(("a", 3))]), Some(0));
        assert_eq!(taken_in_vain(&[Some(("a", 3)), Some(("a", 4))]), Some(1));
        assert_eq!(taken_in_vain(&[Some(("a", 4))]), Some(0));
        // It does not go on for ever.
        let looks: Vec<_> = (0..100).map(|look| Some(("a", 3 + look % 2))).collect();
        assert_eq!(taken_in_vain(&looks), None);
    }

    #[test]
    fn metadata_is_not_taken_where_others_may_have_what_was_held() {
        assert_eq!(taken_in_vain(&[Some(("a", 5))]), None, "a generation was passed over");
        assert_eq!(taken_in_vain(&[Some(("a", 3)), Some(("a", 4)), Some(("a", 5))]), None);
        assert_eq!(taken_in_vain(&[Some(("a", 2))]), None, "generations do not go back");
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
