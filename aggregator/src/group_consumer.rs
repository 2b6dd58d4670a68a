//! This worker's consumer: a member of the group, which reads what the worker's partitions say.
//!
//! ```text
//!  group ◄── consumer ──► decisions: partitions given and taken
//!  Action of a partition ──► carry_out ──► fetcher: read from an offset, stop
//!                                     └──► locator: look for an offset, stop looking
//! ```
//!
//! Only [`GroupConsumer::let_go`] takes partitions out of librdkafka's hands. librdkafka takes that
//! for the answer to a REVOKE, also to one that nobody has seen yet, and a consumer that was left
//! out of its group then joins again in the background. So a partition that is not read for another
//! reason stays assigned: its messages are left where they are, and its position is moved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_counts::Bookmark;
use tally_kafka::{
    FetchedMessage, Fetcher, Member, Membership, Rebalance, TopicError, Unreadable, Unserved,
};

use crate::Error;
use crate::locator::{Answer, Locator};
use crate::partition_error::PartitionError;
use crate::partitions::Action;

pub(crate) struct GroupConsumer<'c> {
    consumer: &'c Arc<BaseConsumer<Membership>>,
    fetcher: Fetcher,
    topic: &'c str,
    topic_id: String,
    locator: Locator,
    /// The member that the partitions were given to. What was read as another member must never be
    /// committed.
    member: Option<Member>,
}

/// What is to be committed of a partition.
pub(crate) struct Commit {
    pub(crate) partition: i32,
    /// The next offset to count.
    pub(crate) next: i64,
    /// Of the message before it.
    pub(crate) leader_epoch: Option<i32>,
    pub(crate) bookmark: Bookmark,
}

impl<'c> GroupConsumer<'c> {
    pub(crate) fn new(
        consumer: &'c Arc<BaseConsumer<Membership>>,
        fetcher: Fetcher,
        topic: &'c str,
        topic_id: &str,
        locator: Locator,
    ) -> GroupConsumer<'c> {
        let topic_id = topic_id.to_owned();
        GroupConsumer { consumer, fetcher, topic, topic_id, locator, member: None }
    }

    /// The next message of any partition, if one is there; or that a partition cannot be read on.
    pub(crate) fn fetch(&mut self) -> Option<Result<FetchedMessage<'_>, Unreadable>> {
        self.fetcher.fetch()
    }

    /// With short turns, the next message is of another partition than the last one, if another
    /// has one.
    pub(crate) fn short_turns(&mut self, are_wanted: bool) {
        self.fetcher.short_turns(are_wanted);
    }

    /// The partitions that Kafka does not serve for long.
    pub(crate) fn unserved(&self) -> Vec<Unserved> {
        self.fetcher.unserved()
    }

    /// Where the logs of partitions end that are read, or were.
    pub(crate) fn ends(&self) -> BTreeMap<i32, i64> {
        self.fetcher.ends()
    }

    /// The offset up to which there is nothing in a partition that was not handed over.
    pub(crate) fn position(&self, partition: i32) -> Option<i64> {
        self.fetcher.position(partition)
    }

    /// Why a partition stops that cannot be read on; an error if the trouble is the whole topic's.
    pub(crate) fn reason_to_stop(&self, unreadable: Unreadable) -> Result<PartitionError, Error> {
        let topic = self.topic.to_owned();
        match tally_kafka::topic_id(self.consumer.client(), &topic) {
            Ok(is) if is != self.topic_id => {
                return Err(Error::TopicReplaced { topic, was: self.topic_id.clone(), is });
            }
            Err(missing @ TopicError::Missing { .. }) => return Err(missing.into()),
            // What the fetcher says is all there is to say.
            Ok(_) | Err(TopicError::Unavailable { .. }) => {}
        }
        let Unreadable { partition, out_of_range, reason } = unreadable;
        let range = |_| tally_kafka::watermarks(self.consumer.client(), &topic, partition).ok();
        Ok(match (out_of_range, out_of_range.and_then(range)) {
            (Some(next), Some((low, high))) => {
                PartitionError::OutOfRange { topic, partition, next, low, high }
            }
            // Where Kafka does not tell the range, the fetcher's reason still names the offset.
            _ => PartitionError::Unreadable { topic, partition, reason },
        })
    }

    /// Serves the group and the client's errors, for up to `wait`. Returns the partition of a
    /// message that came out here and not by [`GroupConsumer::fetch`]: it must be read again from
    /// where its fold is.
    pub(crate) fn serve(&self, wait: Duration) -> Result<Option<i32>, Error> {
        self.consumer.context().check()?;
        match self.consumer.poll(wait) {
            None => Ok(None),
            Some(Ok(stray)) => Ok(Some(stray.partition())),
            Some(Err(source @ KafkaError::MessageConsumptionFatal(_))) => {
                Err(Error::Kafka { what: "consume from Kafka", source })
            }
            // Brokers come and go; librdkafka connects again by itself.
            Some(Err(error)) => {
                let topic = self.topic;
                tracing::warn!(%error, topic, "trouble with a Kafka broker; librdkafka reconnects");
                self.locator.doubt_topic();
                Ok(None)
            }
        }
    }

    pub(crate) fn next_decision(&self) -> Option<Rebalance> {
        self.consumer.context().next_decision()
    }

    /// The member that the partitions were given to, if any were.
    pub(crate) fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// Whether the partitions belong to another member already, as far as is known: librdkafka does
    /// not always say so. A flush depends on member and generation, not on this.
    pub(crate) fn is_lost(&self) -> bool {
        let is_same = match (Member::of(self.consumer), &self.member) {
            (Some(now), Some(member)) => now.is_same(member),
            (None, None) => true,
            _ => false,
        };
        self.consumer.assignment_lost() || !is_same
    }

    /// Whether the group has given a new name, and with it the partitions that were held under the
    /// old one once more. librdkafka does not revoke them where the loss comes in the middle of a
    /// rebalance.
    pub(crate) fn joined_anew(&self) -> bool {
        Member::of(self.consumer)
            .is_some_and(|now| self.member.as_ref().is_none_or(|member| !now.is_same(member)))
    }

    /// From now on partitions are held as the member that this consumer is by now. What was held as
    /// another one must not be read on.
    pub(crate) fn renew_member(&mut self) {
        if let Some(member) = Member::of(self.consumer) {
            self.member = Some(member);
        }
    }

    /// An assignment is taken, in the generation that it is by now: what the group took away before
    /// has been let go.
    pub(crate) fn renew_generation(&mut self) {
        if let (Some(now), Some(member)) = (Member::of(self.consumer), &mut self.member)
            && now.is_same(member)
        {
            *member = now;
        }
    }

    /// From now on the group is left without asking: nothing is held any more.
    pub(crate) fn leave(&self) {
        self.consumer.context().leave();
    }

    /// Answers the group, which gave partitions. It need not wait until they are located.
    pub(crate) fn take_on(&self) -> Result<(), Error> {
        tally_kafka::take_on(self.consumer).map_err(Error::kafka("take partitions on"))
    }

    /// Answers the group, which takes these partitions, read or not, and waits for this.
    pub(crate) fn let_go(&self, partitions: &[i32]) -> Result<(), Error> {
        tally_kafka::let_go(self.consumer, self.topic, partitions)
            .map_err(Error::kafka("let partitions go"))
    }

    /// Tells fetcher and locator what the partitions' states ask for. Partitions that are to be
    /// read start together, since librdkafka may take a while to move a position.
    pub(crate) fn carry_out(&mut self, actions: &[(i32, Action)]) -> Result<(), Error> {
        let (mut starts, mut requests) = (Vec::new(), Vec::new());
        for (partition, action) in actions {
            match action {
                Action::Nothing => {}
                Action::ReadFrom(offset) => starts.push((*partition, *offset)),
                Action::Locate(ticket) => {
                    self.fetcher.stop(*partition);
                    requests.push((*partition, *ticket));
                }
                Action::Stop => {
                    self.fetcher.stop(*partition);
                    self.locator.give_up(*partition);
                }
            }
        }
        self.locator.locate(&requests);
        if starts.is_empty() {
            return Ok(());
        }
        self.fetcher.start(&starts).map_err(Error::kafka("start reading"))
    }

    /// What the locator has answered since the last call.
    pub(crate) fn located(&mut self) -> Result<Vec<Answer>, Error> {
        self.locator.answers()
    }

    /// What is to be committed as librdkafka lists it, with bookmarks as metadata.
    pub(crate) fn marked(
        &self,
        commits: impl Iterator<Item = Commit>,
    ) -> Result<TopicPartitionList, Error> {
        let mut list = TopicPartitionList::new();
        for Commit { partition, next, leader_epoch, bookmark } in commits {
            let mut element = list.add_partition(self.topic, partition);
            element.set_offset(Offset::Offset(next)).map_err(Error::kafka("list partitions"))?;
            element.set_metadata(bookmark.to_string());
            if let Some(epoch) = leader_epoch {
                tally_kafka::set_leader_epoch(&mut list, self.topic, partition, epoch);
            }
        }
        Ok(list)
    }
}

impl Drop for GroupConsumer<'_> {
    /// A consumer that is closed waits until its partitions are let go, also where its worker fails
    /// with decisions of the group not carried out.
    fn drop(&mut self) {
        self.leave();
        let all_let_go =
            self.consumer.assignment().and_then(|all| self.consumer.incremental_unassign(&all));
        if let Err(error) = all_let_go {
            tracing::warn!(%error, "let partitions go; leaving the group all the same");
        }
    }
}
