//! Reads the last delta batch of partitions of `deltas`: it says how far each source partition was
//! certainly counted, and of which topic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_kafka::{ErrorsByPoll, TopicError};
use tally_platform::config::Config;
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::registry::{Lookup, Registry};
use tally_schemas::{DeltaBatch, DeltaBatchPlan, wire};
use tokio::runtime::Handle;

use crate::Error;
use crate::partition_error::PartitionError;

/// The first look goes so many offsets back: a batch and its transaction's marker.
const FIRST_LOOK: i64 = 2;
/// Each further look goes so many times as far back, past aborted batches.
const FURTHER: i64 = 8;
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// What the last delta batch of a partition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LastBatch {
    pub(crate) topic_id: String,
    /// The next offset of the source partition after the batch.
    pub(crate) to: i64,
}

/// What the group's offset and the last delta batch say of a partition. They were committed
/// together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    /// The partition was never counted.
    Nothing,
    /// The partition was counted up to this next offset.
    At(i64),
    /// The last batch alone says up to where the partition was counted: brokers forget the offsets
    /// of a group that was away for a week.
    Batch(i64),
    /// The two contradict each other: messages would count twice, or not at all. The two ends of a
    /// transaction are written one after the other, so this may pass.
    Contradiction(String),
}

pub(crate) fn agreement(committed: Option<i64>, last: Option<&LastBatch>) -> Agreement {
    match (committed, last.map(|last| last.to)) {
        (None, None) => Agreement::Nothing,
        // Retention may have taken the batch.
        (Some(next), None) => Agreement::At(next),
        (None, Some(next)) => Agreement::Batch(next),
        (Some(next), Some(to)) if next == to => Agreement::At(next),
        (Some(next), Some(to)) => Agreement::Contradiction(format!(
            "the group's offset is {next}, but the last batch ends at {to}"
        )),
    }
}

/// The schema of the batches that this aggregator writes, and the registry that gave it its id.
pub(crate) struct OwnSchema {
    pub(crate) registry: Registry,
    pub(crate) id: u32,
}

pub(crate) struct LastBatches {
    config: Config,
    own: OwnSchema,
    /// The schemas of others' batches that the registry has.
    seen: Mutex<BTreeSet<u32>>,
    deltas: String,
    batches: DeltaBatches,
    runtime: Handle,
    /// A client that is no member of any group; made when it is first needed.
    consumer: Option<BaseConsumer<ErrorsByPoll>>,
}

/// A partition of `deltas` that is read from `at` to its end.
struct Look {
    start: i64,
    at: i64,
    end: i64,
    last: Option<Result<LastBatch, PartitionError>>,
}

impl LastBatches {
    pub(crate) fn new(
        config: &Config,
        own: OwnSchema,
        runtime: &Handle,
    ) -> Result<LastBatches, Error> {
        Ok(LastBatches {
            config: config.clone(),
            own,
            seen: Mutex::default(),
            deltas: config.kafka.deltas.clone(),
            batches: DeltaBatches::new(&config.registry, &config.kafka.deltas)?,
            runtime: runtime.clone(),
            consumer: None,
        })
    }

    /// How many partitions `deltas` has by now.
    pub(crate) fn partitions(&mut self) -> Result<i32, Error> {
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => {
                let group = &self.config.aggregator.group;
                tally_kafka::consumer(&self.config.kafka.cluster(), "tally-aggregator-tail", group)
                    .set("enable.partition.eof", "true")
                    .create_with_context(ErrorsByPoll)
                    .map_err(Error::kafka("make a consumer"))?
            }
        };
        let consumer = self.consumer.insert(consumer);
        Ok(tally_kafka::partition_count(consumer.client(), &self.deltas)?)
    }

    /// A client that tells the end of a partition, and reads nothing between two calls.
    ///
    /// # Panics
    /// If [`LastBatches::partitions`] was not called before.
    pub(crate) fn consumer(&self) -> &BaseConsumer<ErrorsByPoll> {
        self.consumer.as_ref().expect("partitions were counted")
    }

    /// The last batch of each of these partitions that has one, or why what is there is none.
    ///
    /// # Panics
    /// If [`LastBatches::partitions`] was not called before.
    pub(crate) fn lasts(
        &self,
        partitions: &[i32],
    ) -> Result<BTreeMap<i32, Result<LastBatch, PartitionError>>, Error> {
        let consumer = self.consumer.as_ref().expect("partitions were counted");
        let mut looks = BTreeMap::new();
        for partition in partitions {
            let (start, end) =
                tally_kafka::watermarks(consumer.client(), &self.deltas, *partition)?;
            if start < end {
                let at = (end - FIRST_LOOK).max(start);
                looks.insert(*partition, Look { start, at, end, last: None });
            }
        }
        let mut lasts = BTreeMap::new();
        while !looks.is_empty() {
            let read = self.read(consumer, &mut looks);
            consumer.unassign().map_err(Error::kafka("stop reading"))?;
            read?;
            looks.retain(|partition, look| {
                if let Some(last) = look.last.take() {
                    lasts.insert(*partition, last);
                    return false;
                }
                let is_more = look.at > look.start;
                look.at = (look.end - (look.end - look.at) * FURTHER).max(look.start);
                is_more
            });
        }
        Ok(lasts)
    }

    /// Reads each partition to its end.
    fn read(
        &self,
        consumer: &BaseConsumer<ErrorsByPoll>,
        looks: &mut BTreeMap<i32, Look>,
    ) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        for (partition, look) in &*looks {
            list.add_partition_offset(&self.deltas, *partition, Offset::Offset(look.at))
                .map_err(Error::kafka("list partitions"))?;
        }
        consumer.assign(&list).map_err(Error::kafka("start reading"))?;
        let deadline = Instant::now() + PATIENCE;
        let mut open: BTreeSet<i32> = looks.keys().copied().collect();
        while !open.is_empty() {
            match consumer.poll(POLL) {
                // The end of a partition may be reached again, after it has moved.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Ok(message)) => {
                    let look =
                        looks.get_mut(&message.partition()).expect("a partition that is read");
                    let payload = message.payload().unwrap_or(b"");
                    let decoded = self.decode(message.partition(), message.offset(), payload)?;
                    look.last = decoded.transpose().or(look.last.take());
                }
                // Brokers come and go, and librdkafka reconnects by itself; the next look begins
                // behind what retention has just removed.
                Some(Err(error)) if Instant::now() >= deadline => {
                    return Err(self.unavailable(error.to_string()));
                }
                None if Instant::now() >= deadline => {
                    return Err(self.unavailable(String::from("its end is not reached")));
                }
                Some(Err(_)) | None => {}
            }
        }
        Ok(())
    }

    /// The batch in a message; `None` if it is a correction, which counts nothing new. The outer
    /// error passes, since it is the registry's; the inner one is the message's and stays.
    fn decode(
        &self,
        partition: i32,
        offset: i64,
        payload: &[u8],
    ) -> Result<Result<Option<LastBatch>, PartitionError>, Error> {
        let last_of = |body: &[u8]| -> Result<Option<LastBatch>, String> {
            let header = DeltaBatch::decode(body).map_err(|error| error.to_string())?.header;
            let last = LastBatch { topic_id: header.topic_id.to_owned(), to: header.to };
            Ok((!header.correction).then_some(last))
        };
        self.check_registry(partition, offset, payload)?;
        let body = self.batches.sound_body(&self.runtime, payload)?;
        let last = body.map_err(|error| error.to_string()).and_then(|body| last_of(&body));
        Ok(last.map_err(|reason| PartitionError::Unreadable {
            topic: self.deltas.clone(),
            partition,
            reason: format!("offset {offset} is no batch: {reason}"),
        }))
    }

    /// Whether the registry is the one whose ids stand before the batches. One that was set up
    /// anew, or that is another environment's, has other schemas under these ids: increments would
    /// be rejected by its word, or read by the wrong schema.
    fn check_registry(&self, partition: i32, offset: i64, payload: &[u8]) -> Result<(), Error> {
        let Ok((id, _)) = wire::split(payload) else { return Ok(()) };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if id == self.own.id || seen.contains(&id) {
            return Ok(());
        }
        let reason = match self.runtime.block_on(self.own.registry.schema(id))? {
            Lookup::Found { schema, .. } if DeltaBatchPlan::new(&schema).is_ok() => None,
            // Ids grow. An older one may have been deleted since; a newer one was never given.
            Lookup::Unknown if id < self.own.id => None,
            Lookup::Unknown => Some("has no such schema"),
            Lookup::Found { .. } | Lookup::NotAvro { .. } => Some("has something else there"),
        };
        let Some(reason) = reason else {
            seen.insert(id);
            return Ok(());
        };
        let (deltas, own) = (&self.deltas, self.own.id);
        Err(Error::Registry(self.own.registry.not_ours(format!(
            "{reason}: topic {deltas}, partition {partition}, offset {offset} is a batch by schema \
             {id}, and today's have schema {own}"
        ))))
    }

    fn unavailable(&self, reason: String) -> Error {
        Error::Topic(TopicError::Unavailable { topic: self.deltas.clone(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_read_on_only_from_where_offset_and_batch_agree() {
        let last = |to| LastBatch { topic_id: String::from("id"), to };
        assert_eq!(agreement(None, None), Agreement::Nothing);
        assert_eq!(agreement(Some(7), None), Agreement::At(7));
        assert_eq!(agreement(None, Some(&last(7))), Agreement::Batch(7));
        assert_eq!(agreement(Some(7), Some(&last(7))), Agreement::At(7));
        for (committed, to) in [(6, 7), (8, 7)] {
            let Agreement::Contradiction(reason) = agreement(Some(committed), Some(&last(to)))
            else {
                panic!("{committed} and {to} agree");
            };
            assert!(
                reason.contains(&committed.to_string()) && reason.contains(&to.to_string()),
                "{reason}"
            );
        }
    }
}
