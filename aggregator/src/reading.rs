//! Which partitions this member reads, and from where.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_counts::Bookmark;
use tally_service::kafka::{self, Fetched, Fetcher, Membership, Rebalance, TopicError};

use crate::Error;
use crate::core::Start;
use crate::positions::Positions;

pub(crate) struct Reading<'c> {
    consumer: &'c BaseConsumer<Membership>,
    fetcher: Fetcher<'c>,
    topic: &'c str,
    topic_id: String,
    positions: Positions,
}

impl<'c> Reading<'c> {
    pub(crate) fn new(
        consumer: &'c BaseConsumer<Membership>,
        topic: &'c str,
        topic_id: &str,
        positions: Positions,
    ) -> Reading<'c> {
        let topic_id = topic_id.to_owned();
        Reading { consumer, fetcher: Fetcher::new(consumer), topic, topic_id, positions }
    }

    /// The next message of any partition, if one is there; or an error of a partition.
    pub(crate) fn fetch(&mut self) -> Option<Result<Fetched<'_>, Error>> {
        let (consumer, topic, topic_id) = (self.consumer, self.topic, &self.topic_id);
        let unreadable = move |(partition, code)| unreadable(consumer, topic, topic_id, partition, code);
        self.fetcher.fetch().map(|fetched| fetched.map_err(unreadable))
    }

    /// Serves the group and the client's errors, for up to `wait`. A partition comes back whose message came out here and not
    /// by [`Reading::fetch`]: it must be read again from where its fold is.
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

    /// Whether the partitions belong to somebody else already.
    pub(crate) fn is_lost(&self) -> bool {
        self.consumer.assignment_lost()
    }

    /// From now on the group is left without asking: nothing is held any more.
    pub(crate) fn leave(&self) {
        self.consumer.context().leave();
    }

    /// Finds out where these partitions are to be read from: see [`Reading::found`].
    pub(crate) fn want(&mut self, partitions: &[i32]) {
        self.positions.want(partitions);
    }

    /// Where wanted partitions are to be read from, once that is known.
    pub(crate) fn found(&mut self) -> Result<Vec<Start>, Error> {
        self.positions.found()
    }

    /// Reads these partitions from these offsets on.
    pub(crate) fn start(&mut self, from: &[(i32, i64)]) -> Result<(), Error> {
        for (partition, _) in from {
            self.fetcher.take_on(self.topic, *partition);
        }
        let list = self.list(from.iter().copied())?;
        self.consumer.incremental_assign(&list).map_err(Error::kafka("start reading"))
    }

    /// Stops reading these partitions, those of them that are read, and looking for the others' positions. Where the group takes
    /// partitions away, it waits for this, though none of them be read any more.
    pub(crate) fn stop(&mut self, partitions: &[i32]) -> Result<(), Error> {
        self.positions.unwant(partitions);
        for partition in partitions {
            self.fetcher.let_go(*partition);
        }
        let assignment = self.consumer.assignment().map_err(Error::kafka("list the assignment"))?;
        let read = assignment.elements().iter().map(|element| element.partition()).collect::<Vec<_>>();
        let stopped = partitions.iter().filter(|partition| read.contains(partition));
        let list = self.list(stopped.map(|partition| (*partition, 0)))?;
        self.consumer.incremental_unassign(&list).map_err(Error::kafka("stop reading"))
    }

    /// These partitions and next offsets as librdkafka lists them, each with the bookmark of what is remembered there.
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

    /// These partitions and next offsets as librdkafka lists them.
    pub(crate) fn list(
        &self,
        offsets: impl Iterator<Item = (i32, i64)>,
    ) -> Result<TopicPartitionList, Error> {
        let mut list = TopicPartitionList::new();
        for (partition, next) in offsets {
            list.add_partition_offset(self.topic, partition, Offset::Offset(next))
                .map_err(Error::kafka("list partitions"))?;
        }
        Ok(list)
    }
}

impl Drop for Reading<'_> {
    /// A consumer that is closed waits until its partitions are let go, also where its worker fails with decisions of the group
    /// not carried out.
    fn drop(&mut self) {
        self.leave();
        let all_let_go = self.consumer.assignment().and_then(|all| self.consumer.incremental_unassign(&all));
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
    partition: i32,
    code: RDKafkaErrorCode,
) -> Error {
    let topic = topic.to_owned();
    match kafka::topic_id(consumer.client(), &topic) {
        Ok(is) if is != topic_id => return Error::TopicReplaced { topic, was: topic_id.to_owned(), is },
        Err(missing @ TopicError::Missing { .. }) => return missing.into(),
        // What the error says is all there is to say.
        Ok(_) | Err(TopicError::Unavailable { .. }) => {}
    }
    let next =
        consumer.position().ok().and_then(|list| list.find_partition(&topic, partition)?.offset().to_raw());
    match (code, next, kafka::watermarks(consumer.client(), &topic, partition)) {
        (RDKafkaErrorCode::AutoOffsetReset, Some(next), Ok((low, high))) if next >= 0 => {
            Error::OutOfRange { topic, partition, next, low, high }
        }
        _ => Error::Partition { topic, partition, reason: code.to_string() },
    }
}
