//! Which partitions this member reads, and from where.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_service::kafka::{self, Fetched, Fetcher, Membership, Rebalance};

use crate::Error;

/// One call to the group's coordinator, and how long they are repeated.
const OFFSETS_CALL: Duration = Duration::from_secs(10);
const OFFSETS_DEADLINE: Duration = Duration::from_secs(120);

pub(crate) struct Reading<'c> {
    consumer: &'c BaseConsumer<Membership>,
    fetcher: Fetcher<'c>,
    topic: &'c str,
}

impl<'c> Reading<'c> {
    pub(crate) fn new(consumer: &'c BaseConsumer<Membership>, topic: &'c str) -> Reading<'c> {
        Reading { consumer, fetcher: Fetcher::new(consumer), topic }
    }

    /// The next message of any partition, if one is there; or an error of a partition.
    pub(crate) fn fetch(&mut self) -> Option<Result<Fetched<'_>, Error>> {
        self.fetcher.fetch().map(|fetched| {
            fetched.map_err(|(partition, code)| Error::Partition {
                topic: self.topic.to_owned(),
                partition,
                reason: code.to_string(),
            })
        })
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
                Ok(None)
            }
        }
    }

    pub(crate) fn next_decision(&self) -> Option<Rebalance> {
        self.consumer.context().next_decision()
    }

    pub(crate) fn group(&self) -> ConsumerGroupMetadata {
        self.consumer.group_metadata().expect("the consumer has a group")
    }

    /// Whether the partitions belong to somebody else already.
    pub(crate) fn is_lost(&self) -> bool {
        self.consumer.assignment_lost()
    }

    /// From now on the group is left without asking: nothing is held any more.
    pub(crate) fn leave(&self) {
        self.consumer.context().leave();
    }

    /// Where each partition is to be read from: its committed offset, or the log's beginning if there is none yet.
    pub(crate) fn committed(&self, partitions: &[i32]) -> Result<Vec<(i32, i64)>, Error> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(self.topic, *partition);
        }
        let committed = self.stable_offsets(&list)?;
        let mut from = Vec::with_capacity(partitions.len());
        for element in committed.elements() {
            let partition = element.partition();
            let next = match element.offset() {
                Offset::Offset(next) => next,
                _ => kafka::watermarks(self.consumer.client(), self.topic, partition)?.0,
            };
            from.push((partition, next));
        }
        Ok(from)
    }

    /// The broker waits for transactions that could still change an offset.
    fn stable_offsets(&self, partitions: &TopicPartitionList) -> Result<TopicPartitionList, Error> {
        let deadline = Instant::now() + OFFSETS_DEADLINE;
        loop {
            let source = match self.consumer.committed_offsets(partitions.clone(), OFFSETS_CALL) {
                Ok(committed) => match committed.elements().iter().find_map(|one| one.error().err()) {
                    None => return Ok(committed),
                    Some(source) => source,
                },
                Err(source) => source,
            };
            if Instant::now() >= deadline {
                return Err(Error::Kafka { what: "read committed offsets", source });
            }
            tracing::warn!(error = %source, "read committed offsets again");
        }
    }

    /// Reads these partitions from these offsets on.
    pub(crate) fn start(&mut self, from: &[(i32, i64)]) -> Result<(), Error> {
        for (partition, _) in from {
            self.fetcher.take_on(self.topic, *partition);
        }
        let list = self.list(from.iter().copied())?;
        self.consumer.incremental_assign(&list).map_err(Error::kafka("start reading"))
    }

    /// Stops reading these partitions, those of them that are read. Where the group takes partitions away, it waits for this, though
    /// none of them be read any more.
    pub(crate) fn stop(&mut self, partitions: &[i32]) -> Result<(), Error> {
        for partition in partitions {
            self.fetcher.let_go(*partition);
        }
        let assignment = self.consumer.assignment().map_err(Error::kafka("list the assignment"))?;
        let read = assignment.elements().iter().map(|element| element.partition()).collect::<Vec<_>>();
        let stopped = partitions.iter().filter(|partition| read.contains(partition));
        let list = self.list(stopped.map(|partition| (*partition, 0)))?;
        self.consumer.incremental_unassign(&list).map_err(Error::kafka("stop reading"))
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
