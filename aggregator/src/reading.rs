//! Which partitions this member holds, and from where it reads them.
//!
//! ```text
//!  the group gives ──► hold ──► looked for ──start──► read ◄──start── set aside
//!                                   ▲                   └──set_aside─────► ▲
//!                                   └────────────look_again────────────────┘
//!  the group takes ──► let_go, from anywhere
//! ```
//!
//! Only [`Reading::let_go`] takes partitions out of librdkafka's hands. To librdkafka that is the
//! answer to a REVOKE, also to one that nobody has seen yet, and it makes a consumer that was
//! thrown out join again in the background. So whatever else is to stand still or to be read again
//! stays assigned: its messages are left where they are, and its position is moved.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_counts::Bookmark;
use tally_kafka::{FetchedMessage, Fetcher, Member, Membership, Rebalance, TopicError, Unreadable};

use crate::Error;
use crate::core::Start;
use crate::positions::Positions;

pub(crate) struct Reading<'c> {
    consumer: &'c Arc<BaseConsumer<Membership>>,
    fetcher: Fetcher,
    topic: &'c str,
    topic_id: String,
    positions: Positions,
    /// What the group gave and has not taken back, whether it is read by now or not.
    held: BTreeSet<i32>,
    /// As whom: what was read as somebody else must never be committed.
    member: Option<Member>,
}

impl<'c> Reading<'c> {
    pub(crate) fn new(
        consumer: &'c Arc<BaseConsumer<Membership>>,
        fetcher: Fetcher,
        topic: &'c str,
        topic_id: &str,
        positions: Positions,
    ) -> Reading<'c> {
        let topic_id = topic_id.to_owned();
        Reading {
            consumer,
            fetcher,
            topic,
            topic_id,
            positions,
            held: BTreeSet::new(),
            member: None,
        }
    }

    /// The next message of any partition, if one is there; or an error of a partition.
    pub(crate) fn fetch(&mut self) -> Option<Result<FetchedMessage<'_>, Error>> {
        let (consumer, topic, topic_id) = (self.consumer, self.topic, &self.topic_id);
        let unreadable = move |reason| unreadable(consumer, topic, topic_id, reason);
        self.fetcher.fetch().map(|fetched| fetched.map_err(unreadable))
    }

    /// Serves the group and the client's errors, for up to `wait`. A partition comes back whose
    /// message came out here and not by [`Reading::fetch`]: it must be read again from where its
    /// fold is.
    pub(crate) fn serve(&self, wait: Duration) -> Result<Option<i32>, Error> {
        match self.consumer.poll(wait) {
            None => Ok(None),
            Some(Ok(stray)) => Ok(Some(stray.partition())),
            Some(Err(source @ KafkaError::MessageConsumptionFatal(_))) => {
                Err(Error::Kafka { what: "consume", source })
            }
            // Brokers come and go; librdkafka connects again by itself.
            Some(Err(error)) => {
                tracing::warn!(%error, "consume");
                self.positions.doubt_topic();
                Ok(None)
            }
        }
    }

    pub(crate) fn next_decision(&self) -> Option<Rebalance> {
        self.consumer.context().next_decision()
    }

    /// Who holds the partitions, if they were ever given.
    pub(crate) fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// Whether the partitions belong to somebody else already, as far as is known: librdkafka does
    /// not always say so. A flush hangs on the member's name, not on this.
    pub(crate) fn is_lost(&self) -> bool {
        self.consumer.assignment_lost() || Member::of(self.consumer) != self.member
    }

    /// Whether the group has given a new name, and with it the partitions that were held under the
    /// old one once more. librdkafka does not revoke them where the loss comes in the middle of a
    /// rebalance.
    pub(crate) fn joined_anew(&self) -> bool {
        let now = Member::of(self.consumer);
        now.is_some() && now != self.member
    }

    /// From now on partitions are held by who this consumer is by now. What was held before must
    /// not be read on, but looked for.
    pub(crate) fn renew_member(&mut self) {
        if let Some(member) = Member::of(self.consumer) {
            self.member = Some(member);
        }
    }

    /// From now on the group is left without asking: nothing is held any more.
    pub(crate) fn leave(&self) {
        self.consumer.context().leave();
    }

    /// The group gave these partitions: finds out where they are to be read from, see
    /// [`Reading::found`].
    pub(crate) fn hold(&mut self, partitions: &[i32]) -> Result<(), Error> {
        self.held.extend(partitions);
        self.positions.want(partitions);
        // The group waits for an answer, and need not wait for the positions.
        tally_kafka::take_on(self.consumer).map_err(Error::kafka("take partitions on"))
    }

    /// Finds out anew from where these partitions, which are held, are to be read.
    pub(crate) fn look_again(&mut self, partitions: &[i32]) {
        partitions.iter().for_each(|partition| self.set_aside(*partition));
        self.positions.want(partitions);
    }

    pub(crate) fn held(&self) -> Vec<i32> {
        self.held.iter().copied().collect()
    }

    /// Reads nothing more of what is held.
    pub(crate) fn stand_still(&mut self) {
        let held = self.held();
        held.iter().for_each(|partition| self.set_aside(*partition));
        self.positions.unwant(&held);
    }

    /// Where held partitions are to be read from, once that is known.
    pub(crate) fn found(&mut self) -> Result<Vec<Start>, Error> {
        self.positions.found()
    }

    /// Nothing of this partition comes any more until it is started again.
    pub(crate) fn set_aside(&mut self, partition: i32) {
        self.fetcher.stop(partition);
    }

    /// Reads these partitions from these offsets on, whether they were read before or not.
    pub(crate) fn start(&mut self, from: &[(i32, i64)]) -> Result<(), Error> {
        self.fetcher.start(from).map_err(Error::kafka("start reading"))
    }

    /// The group takes these partitions, and waits for this, though none of them be read.
    pub(crate) fn let_go(&mut self, partitions: &[i32]) -> Result<(), Error> {
        self.positions.unwant(partitions);
        for partition in partitions {
            self.held.remove(partition);
            self.fetcher.stop(*partition);
        }
        tally_kafka::let_go(self.consumer, self.topic, partitions)
            .map_err(Error::kafka("let partitions go"))
    }

    /// These partitions and next offsets as librdkafka lists them, each with the bookmark of what
    /// is remembered there.
    pub(crate) fn marked(
        &self,
        offsets: impl Iterator<Item = (i32, i64, Bookmark)>,
    ) -> Result<TopicPartitionList, Error> {
        let mut list = TopicPartitionList::new();
        for (partition, next, bookmark) in offsets {
            let mut element = list.add_partition(self.topic, partition);
            element.set_offset(Offset::Offset(next)).map_err(Error::kafka("list partitions"))?;
            element.set_metadata(bookmark.to_string());
        }
        Ok(list)
    }
}

impl Drop for Reading<'_> {
    /// A consumer that is closed waits until its partitions are let go, also where its worker fails
    /// with decisions of the group not carried out.
    fn drop(&mut self) {
        self.leave();
        let all_let_go =
            self.consumer.assignment().and_then(|all| self.consumer.incremental_unassign(&all));
        if let Err(error) = all_let_go {
            tracing::warn!(%error, "let partitions go");
        }
    }
}

/// Why a partition cannot be read on.
fn unreadable(
    consumer: &BaseConsumer<Membership>,
    topic: &str,
    topic_id: &str,
    reason: Unreadable,
) -> Error {
    let topic = topic.to_owned();
    match tally_kafka::topic_id(consumer.client(), &topic) {
        Ok(is) if is != topic_id => {
            return Error::TopicReplaced { topic, was: topic_id.to_owned(), is };
        }
        Err(missing @ TopicError::Missing { .. }) => return missing.into(),
        // What the error says is all there is to say.
        Ok(_) | Err(TopicError::Unavailable { .. }) => {}
    }
    let Unreadable { partition, out_of_range, reason } = reason;
    match (out_of_range, tally_kafka::watermarks(consumer.client(), &topic, partition)) {
        (Some(next), Ok((low, high))) => Error::OutOfRange { topic, partition, next, low, high },
        _ => Error::Partition { topic, partition, reason },
    }
}
