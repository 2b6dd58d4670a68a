//! The thread that finds positions out.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tally_counts::Rules;
use tally_kafka::{Membership, TopicError};
use tally_platform::config::Config;

use super::{Shared, Ticket};
use crate::Error;
use crate::core::{OtherRules, Start};
use crate::tail::{Agreement, Tail, agreement};

/// A call to the group's coordinator. Where it does not tell in time, it may tell of some
/// partitions.
const TOGETHER: Duration = Duration::from_secs(2);
const ALONE: Duration = Duration::from_millis(500);
/// What a dead member left open has ended by then.
const UNUSUAL: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(200);
const REMINDER: Duration = Duration::from_secs(10);
const TOPIC_CHECK: Duration = Duration::from_secs(5);
/// The two ends of a transaction, the group's offsets and a partition of `deltas`, are written one
/// after the other.
const AGREE_WITHIN: Duration = Duration::from_secs(60);

/// What was committed of a partition, if anything: the next offset, and what was noted with it.
type Committed = (Option<i64>, String);

pub(super) struct Finder {
    shared: Arc<Shared>,
    consumer: Arc<BaseConsumer<Membership>>,
    tail: Tail,
    topic: String,
    topic_id: String,
    deltas: String,
    rules: Rules,
    /// When a reason to wait was last logged.
    said: Option<Instant>,
}

/// Why there is no answer.
enum Obstacle {
    /// It passes.
    Wait(String),
    Stop(Error),
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Obstacle {
        match error {
            Error::Topic(TopicError::Unavailable { .. }) => Obstacle::Wait(error.to_string()),
            error => Obstacle::Stop(error),
        }
    }
}

impl From<TopicError> for Obstacle {
    fn from(error: TopicError) -> Obstacle {
        Obstacle::from(Error::from(error))
    }
}

impl Finder {
    pub(super) fn new(
        config: &Config,
        consumer: &Arc<BaseConsumer<Membership>>,
        topic_id: &str,
        shared: &Arc<Shared>,
    ) -> Finder {
        Finder {
            shared: Arc::clone(shared),
            consumer: Arc::clone(consumer),
            tail: Tail::new(config),
            topic: config.kafka.increments.clone(),
            topic_id: topic_id.to_owned(),
            deltas: config.kafka.deltas.clone(),
            rules: config.rules(),
            said: None,
        }
    }

    pub(super) fn run(mut self) {
        let mut pause = TOPIC_CHECK;
        while let Some(wanted) = self.next(pause) {
            match self.look(&wanted) {
                Ok(()) => {}
                Err(Obstacle::Wait(reason)) => self.wait_for(&reason),
                Err(Obstacle::Stop(error)) => {
                    self.shared.lock().failed = Some(error);
                    return;
                }
            }
            let all_found = self.shared.lock().wanted.is_empty();
            pause = if all_found { TOPIC_CHECK } else { RETRY };
        }
    }

    /// What is wanted, once something new is or the pause is over; `None` at the end.
    fn next(&self, pause: Duration) -> Option<BTreeMap<i32, Ticket>> {
        let until = Instant::now() + pause;
        let idle = pause == TOPIC_CHECK;
        let mut state = self.shared.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.closed {
                return None;
            }
            if state.doubts_topic || left.is_zero() || (idle && !state.wanted.is_empty()) {
                state.doubts_topic = false;
                return Some(state.wanted.clone());
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn look(&mut self, wanted: &BTreeMap<i32, Ticket>) -> Result<(), Obstacle> {
        let is = tally_kafka::topic_id(self.consumer.client(), &self.topic)?;
        self.check_topic(&self.topic_id, is)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let count = self.tail.partitions()?;
        let (here, missing): (Vec<i32>, Vec<i32>) =
            wanted.keys().copied().partition(|partition| *partition < count);
        if let Some(partition) = missing.first() {
            let Finder { topic, deltas, .. } = &*self;
            self.wait_for(&format!(
                "partition {partition} of {topic} needs its own in {deltas}, which has {count} partitions: add to them"
            ));
        }
        let since = here.iter().map(|partition| wanted[partition].since).min();
        let committed = since.map_or_else(BTreeMap::new, |since| self.committed(&here, since));
        if committed.is_empty() {
            return Ok(());
        }
        let lasts = self.tail.lasts(&committed.keys().copied().collect::<Vec<_>>())?;
        let (lows, highs) =
            (self.ends(&committed, Offset::Beginning)?, self.ends(&committed, Offset::End)?);
        for (partition, (committed, metadata)) in committed {
            let (low, high) = (lows[&partition], highs[&partition]);
            if let Some(next) = committed.filter(|next| !(low..=high).contains(next)) {
                let topic = self.topic.clone();
                return Err(Obstacle::Stop(Error::OutOfRange {
                    topic,
                    partition,
                    next,
                    low,
                    high,
                }));
            }
            let last = lasts.get(&partition);
            if let Some(last) = last {
                self.check_topic(&last.topic_id, self.topic_id.clone())?;
            }
            let ticket = wanted[&partition];
            let start = match agreement(committed, last) {
                Agreement::Nothing => Start::afresh(partition, low),
                Agreement::At(next) => self.resumed(partition, next, &metadata)?.not_before(low),
                Agreement::Batch(next) => {
                    tracing::warn!(
                        partition,
                        next,
                        "the group's offset is gone: reading on after the last batch"
                    );
                    self.resumed(partition, next, &metadata)?.not_before(low)
                }
                Agreement::None(_) if ticket.since.elapsed() < AGREE_WITHIN => continue,
                Agreement::None(reason) => {
                    let topic = self.topic.clone();
                    return Err(Obstacle::Stop(Error::Partition { topic, partition, reason }));
                }
            };
            self.hand_over(ticket, start);
        }
        Ok(())
    }

    fn resumed(&self, partition: i32, next: i64, metadata: &str) -> Result<Start, Obstacle> {
        Start::resumed(partition, next, metadata, &self.rules).map_err(
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

    /// One end of each partition's log, of all in one call: it may wait behind a fetch that waits
    /// for messages.
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

    /// The committed offsets that can be had.
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
                // Some of them may be had.
                for partition in partitions.iter().filter(|_| partitions.len() > 1) {
                    found.extend(self.ask(&[*partition], ALONE).into_iter().flatten());
                }
            }
        }
        found
    }

    /// The broker waits for transactions that could still change an offset.
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
            found.insert(element.partition(), (next, element.metadata().to_owned()));
        }
        Ok(found)
    }

    fn hand_over(&self, ticket: Ticket, start: Start) {
        let mut state = self.shared.lock();
        let is_wanted =
            state.wanted.get(&start.partition).is_some_and(|now| now.number == ticket.number);
        if is_wanted {
            state.wanted.remove(&start.partition);
            state.found.push(start);
        }
    }

    fn wait_for(&mut self, reason: &str) {
        if self.said.is_none_or(|said| said.elapsed() >= REMINDER) {
            tracing::warn!(reason, "partitions wait for their positions");
            self.said = Some(Instant::now());
        } else {
            tracing::debug!(reason, "partitions wait for their positions");
        }
    }
}
