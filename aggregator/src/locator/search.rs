//! The search that the locator's thread runs.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tally_counts::Rules;
use tally_kafka::{Membership, TopicError};
use tally_platform::config::Config;
use tally_platform::quiet_log::QuietLog;
use tokio::runtime::Handle;

use super::lineage::{self, Counted};
use super::{Answer, Request, Shared};
use crate::Error;
use crate::last_batches::{Agreement, LastBatches, OwnSchema, agreement};
use crate::partition_error::PartitionError;
use crate::partitions::{OtherRules, ResumePoint};

/// How long one call may ask the group's coordinator for all partitions. If it does not answer in
/// time, each partition is asked for [`ALONE`]: the coordinator may answer for some of them.
const TOGETHER: Duration = Duration::from_secs(2);
const ALONE: Duration = Duration::from_millis(500);
/// After so long a wait is worth a warning: transactions that a dead member left open have ended by
/// then.
const UNUSUAL: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(200);
const REMINDER: Duration = Duration::from_secs(10);
const TOPIC_CHECK: Duration = Duration::from_secs(5);
/// How long the group's offset and the last delta batch may disagree. The two ends of a transaction
/// are written one after the other.
const AGREE_WITHIN: Duration = Duration::from_secs(60);

/// What the group committed of a partition.
struct Committed {
    /// The next offset, if there is one.
    next: Option<i64>,
    /// Of the message before it, if it is known.
    leader_epoch: Option<i32>,
    metadata: String,
}

pub(super) struct Search {
    shared: Arc<Shared>,
    consumer: Arc<BaseConsumer<Membership>>,
    last_batches: LastBatches,
    topic: String,
    topic_id: String,
    deltas: String,
    rules: Rules,
    log: QuietLog,
}

/// Why a search found nothing.
enum Obstacle {
    /// The reason passes by itself: search again.
    Wait(String),
    /// The worker must stop.
    Stop(Error),
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Obstacle {
        match error {
            Error::Topic(TopicError::Unavailable { .. }) | Error::Registry(_) => {
                Obstacle::Wait(error.to_string())
            }
            error => Obstacle::Stop(error),
        }
    }
}

impl From<TopicError> for Obstacle {
    fn from(error: TopicError) -> Obstacle {
        Obstacle::from(Error::from(error))
    }
}

impl Search {
    pub(super) fn new(
        config: &Config,
        own_schema: OwnSchema,
        consumer: &Arc<BaseConsumer<Membership>>,
        topic_id: &str,
        shared: &Arc<Shared>,
        runtime: &Handle,
    ) -> Result<Search, Error> {
        Ok(Search {
            shared: Arc::clone(shared),
            consumer: Arc::clone(consumer),
            last_batches: LastBatches::new(config, own_schema, runtime)?,
            topic: config.kafka.increments.clone(),
            topic_id: topic_id.to_owned(),
            deltas: config.kafka.deltas.clone(),
            rules: config.rules(),
            log: QuietLog::every(REMINDER),
        })
    }

    pub(super) fn run(mut self) {
        let mut pause = TOPIC_CHECK;
        while let Some(requests) = self.next(pause) {
            match self.look(&requests) {
                Ok(()) => {}
                Err(Obstacle::Wait(reason)) => self.wait_for(&reason),
                Err(Obstacle::Stop(error)) => {
                    self.shared.lock().failed = Some(error);
                    return;
                }
            }
            let all_found = self.shared.lock().requests.is_empty();
            pause = if all_found { TOPIC_CHECK } else { RETRY };
        }
    }

    /// The open requests, once there is a new one or the pause is over; `None` at the end.
    fn next(&self, pause: Duration) -> Option<BTreeMap<i32, Request>> {
        let until = Instant::now() + pause;
        let idle = pause == TOPIC_CHECK;
        let mut inbox = self.shared.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if inbox.closed {
                return None;
            }
            if inbox.doubts_topic || left.is_zero() || (idle && !inbox.requests.is_empty()) {
                inbox.doubts_topic = false;
                return Some(inbox.requests.clone());
            }
            inbox = self
                .shared
                .changed
                .wait_timeout(inbox, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn look(&mut self, requests: &BTreeMap<i32, Request>) -> Result<(), Obstacle> {
        let is = tally_kafka::topic_id(self.consumer.client(), &self.topic)?;
        self.check_topic(&self.topic_id, is)?;
        if requests.is_empty() {
            return Ok(());
        }
        let count = self.last_batches.partitions()?;
        let (here, missing): (Vec<i32>, Vec<i32>) =
            requests.keys().copied().partition(|partition| *partition < count);
        if let Some(partition) = missing.first() {
            let Search { topic, deltas, .. } = &*self;
            self.wait_for(&format!(
                "partition {partition} of {topic} needs its own in {deltas}, \
                 which has {count} partitions: add to them"
            ));
        }
        let since = here.iter().map(|partition| requests[partition].since).min();
        let committed = since.map_or_else(BTreeMap::new, |since| self.committed(&here, since));
        if committed.is_empty() {
            return Ok(());
        }
        let mut lasts = self.last_batches.lasts(&committed.keys().copied().collect::<Vec<_>>())?;
        let (lows, highs) =
            (self.ends(&committed, Offset::Beginning)?, self.ends(&committed, Offset::End)?);
        let mut broken = self.broken(&committed, &lows, &highs)?;
        for (partition, Committed { next: committed, metadata, .. }) in committed {
            let (low, high) = (lows[&partition], highs[&partition]);
            let request = requests[&partition];
            let topic = || self.topic.clone();
            if let Some(next) = committed.filter(|next| !(low..=high).contains(next)) {
                let topic = topic();
                let gone = PartitionError::OutOfRange { topic, partition, next, low, high };
                self.answer(partition, request, Err(gone));
                continue;
            }
            let last = match lasts.remove(&partition).transpose() {
                Ok(last) => last,
                Err(unreadable) => {
                    self.answer(partition, request, Err(unreadable));
                    continue;
                }
            };
            if let Some(last) = &last {
                self.check_topic(&last.topic_id, self.topic_id.clone())?;
            }
            let point = match agreement(committed, last.as_ref()) {
                Agreement::Nothing => {
                    if low > 0 {
                        tracing::error!(
                            partition,
                            offset = low,
                            "Kafka's log of the partition begins at this offset, and nothing of it \
                             was ever counted: what came before is in no count, and no total of \
                             this partition can be proven; counting from here on"
                        );
                    }
                    Ok(ResumePoint::afresh(partition, low))
                }
                Agreement::At(next) => match broken.remove(&partition) {
                    Some(reason) => {
                        Err(PartitionError::Unreadable { topic: topic(), partition, reason })
                    }
                    None => Ok(self.resumed(partition, next, &metadata)?.not_before(low)),
                },
                Agreement::Batch(next) => {
                    tracing::warn!(
                        partition,
                        next,
                        "the group's committed offset is gone from Kafka: \
                         reading on after the last delta batch"
                    );
                    Ok(self.resumed(partition, next, &metadata)?.not_before(low))
                }
                Agreement::Contradiction(_) if request.since.elapsed() < AGREE_WITHIN => continue,
                Agreement::Contradiction(reason) => {
                    Err(PartitionError::Unreadable { topic: topic(), partition, reason })
                }
            };
            self.answer(partition, request, point);
        }
        Ok(())
    }

    /// For each partition whose log is not what was counted of it, how that shows.
    fn broken(
        &self,
        committed: &BTreeMap<i32, Committed>,
        lows: &BTreeMap<i32, i64>,
        highs: &BTreeMap<i32, i64>,
    ) -> Result<BTreeMap<i32, String>, Obstacle> {
        let counted = |(partition, committed): (&i32, &Committed)| {
            let (next, epoch) = (committed.next?, committed.leader_epoch?);
            // Retention may have taken the message, which is no sign of anything.
            let is_there = lows[partition] < next && next <= highs[partition];
            is_there.then_some((*partition, Counted { next, epoch }))
        };
        let counted = committed.iter().filter_map(counted).collect();
        lineage::broken(self.last_batches.consumer(), &self.topic, &counted)
            .map_err(|error| Obstacle::Wait(format!("read what was counted last: {error}")))
    }

    fn resumed(&self, partition: i32, next: i64, metadata: &str) -> Result<ResumePoint, Obstacle> {
        ResumePoint::resumed(partition, next, metadata, &self.rules).map_err(
            |OtherRules { have, want }| {
                let topic = self.topic.clone();
                Obstacle::Stop(Error::OtherRules { topic, partition, next, have, want })
            },
        )
    }

    fn check_topic(&self, was: &str, is: String) -> Result<(), Obstacle> {
        if is == was {
            return Ok(());
        }
        Err(Obstacle::Stop(Error::TopicReplaced {
            topic: self.topic.clone(),
            was: was.to_owned(),
            is,
        }))
    }

    /// One end of each partition's log. All are asked for in one call, since a call may wait behind
    /// a fetch that waits for messages.
    fn ends<T>(&self, of: &BTreeMap<i32, T>, end: Offset) -> Result<BTreeMap<i32, i64>, Obstacle> {
        let unavailable =
            |error: KafkaError| Obstacle::Wait(format!("read where {} ends: {error}", self.topic));
        let mut list = TopicPartitionList::new();
        for partition in of.keys() {
            list.add_partition_offset(&self.topic, *partition, end).map_err(unavailable)?;
        }
        let answered = self.consumer.offsets_for_times(list, TOGETHER).map_err(unavailable)?;
        let mut ends = BTreeMap::new();
        for element in answered.elements() {
            element.error().map_err(unavailable)?;
            let Offset::Offset(next) = element.offset() else {
                let partition = element.partition();
                return Err(Obstacle::Wait(format!(
                    "the broker does not tell where partition {partition} ends"
                )));
            };
            ends.insert(element.partition(), next);
        }
        Ok(ends)
    }

    /// The committed offsets of those partitions for which the coordinator tells one.
    fn committed(&mut self, partitions: &[i32], since: Instant) -> BTreeMap<i32, Committed> {
        let mut found = BTreeMap::new();
        match self.ask(partitions, TOGETHER) {
            Ok(committed) => found = committed,
            Err(error) => {
                if since.elapsed() > UNUSUAL {
                    self.wait_for(&format!("read committed offsets: {error}"));
                } else {
                    tracing::debug!(%error, "read committed offsets");
                }
                // The coordinator may tell some of them.
                for partition in partitions.iter().filter(|_| partitions.len() > 1) {
                    found.extend(self.ask(&[*partition], ALONE).into_iter().flatten());
                }
            }
        }
        found
    }

    /// The committed offsets of all these partitions, or an error: the coordinator does not tell an
    /// offset that an open transaction could still change.
    fn ask(
        &self,
        partitions: &[i32],
        timeout: Duration,
    ) -> Result<BTreeMap<i32, Committed>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        let committed = self.consumer.committed_offsets(list, timeout)?;
        let mut found = BTreeMap::new();
        for element in committed.elements() {
            element.error()?;
            let next = match element.offset() {
                Offset::Offset(next) => Some(next),
                _ => None,
            };
            let partition = element.partition();
            let leader_epoch = tally_kafka::leader_epoch(&committed, &self.topic, partition);
            let metadata = element.metadata().to_owned();
            found.insert(partition, Committed { next, leader_epoch, metadata });
        }
        Ok(found)
    }

    /// Answers a request that is still the partition's last.
    fn answer(&self, partition: i32, request: Request, point: Result<ResumePoint, PartitionError>) {
        let mut inbox = self.shared.lock();
        let asked = inbox.requests.get(&partition).map(|asked| asked.ticket);
        if asked == Some(request.ticket) {
            inbox.requests.remove(&partition);
            inbox.answers.push(Answer { partition, ticket: request.ticket, point });
        }
    }

    fn wait_for(&mut self, reason: &str) {
        if self.log.failed(Instant::now()).is_some() {
            tracing::warn!(
                reason,
                "partitions wait for their positions; looking again, others go on"
            );
        } else {
            tracing::debug!(reason, "partitions wait for their positions");
        }
    }
}
