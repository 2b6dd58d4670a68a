//! Messages straight from the brokers that lead the partitions, many at a time.
//!
//! ```text
//!  broker ══ one connection each, one fetch at a time ══► answer ─► a chunk per partition ─► batch ─► message, borrowed
//!                                                          memory used again ◄──────────────────┘
//! ```
//!
//! All of it happens on the thread that asks for messages, while the next answer comes in; only the search for leaders has a thread
//! of its own. What is fetched and not handed over yet is bounded: at [`AHEAD`] bytes nothing more is asked for.
//!
//! A partition is read as others read it who want only what was committed: brokers send nothing beyond the last stable offset, and
//! what they say was aborted is passed over. A fetch names the topic by its id and the epoch that was read last (KIP-320), so neither
//! another topic of the same name nor a log that was cut off and written anew is read on as if nothing had been.

mod chunk;
mod compression;
mod connection;
mod leaders;
mod records;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse};
use rdkafka::consumer::BaseConsumer;
use uuid::Uuid;

use self::chunk::{Aborted, Chunk, Message};
use self::connection::Connection;
use self::leaders::Leaders;
use super::{Fetched, Membership, Unreadable};

/// The most bytes of one answer, and of one partition in it; one batch that is longer comes all the same.
const ANSWER_BYTES: i32 = 4 << 20;
const PARTITION_BYTES: i32 = 1 << 20;
/// Bytes that are fetched and not handed over, from which on nothing is asked for.
const AHEAD: usize = 4 << 20;
/// A broker answers once it has so much, or after so long: else a busy topic would be fetched in crumbs.
const MIN_BYTES: i32 = 64 << 10;
const MAX_WAIT_MS: i32 = 50;
/// Bytes handed over between two looks at the connections.
const LOOK: usize = 256 << 10;
/// Only what was committed.
const READ_COMMITTED: i8 = 1;

pub(super) struct Direct {
    topic_id: Uuid,
    partitions: BTreeMap<i32, Partition>,
    links: BTreeMap<i32, Link>,
    leaders: Leaders,
    /// Fetched, in the order of arrival.
    ready: VecDeque<Piece>,
    /// What messages come from right now.
    current: Option<Piece>,
    /// The decompressed records of the batch that is read.
    inflated: Vec<u8>,
    failed: VecDeque<Unreadable>,
    /// Bytes in `ready` and `current`.
    ahead: usize,
    /// Bytes handed over since the last look at the connections.
    since_look: usize,
    runs: u64,
}

/// A partition that is read.
struct Partition {
    /// Which time it was started: answers to questions of an earlier time are out of date.
    run: u64,
    leader: Option<i32>,
    /// What is to be asked for next, and the leader's epoch of the batch before it.
    next: i64,
    leader_epoch: i32,
}

struct Link {
    connection: Connection,
    /// The run and the offset that were asked for, by partition.
    asked: BTreeMap<i32, (u64, i64)>,
    /// The partition that comes first in the next request: an answer may have no room for the last ones.
    first: i32,
    /// The broker wants to be left alone until then.
    not_before: Instant,
}

struct Piece {
    partition: i32,
    chunk: Chunk,
    bytes: usize,
}

impl Direct {
    /// Of this topic, and no other that comes to have its name; `topic_id` as librdkafka prints it.
    ///
    /// # Panics
    /// If `topic_id` is none: in base64, without padding.
    pub(super) fn new(consumer: &Arc<BaseConsumer<Membership>>, topic: &str, topic_id: &str, client_id: &str) -> Direct {
        let bytes = STANDARD_NO_PAD.decode(topic_id).expect("librdkafka prints a topic's id in base64");
        Direct {
            topic_id: Uuid::from_slice(&bytes).expect("a topic's id has 16 bytes"),
            partitions: BTreeMap::new(),
            links: BTreeMap::new(),
            leaders: Leaders::start(consumer, topic, client_id),
            ready: VecDeque::new(),
            current: None,
            inflated: Vec::new(),
            failed: VecDeque::new(),
            ahead: 0,
            since_look: 0,
            runs: 0,
        }
    }

    /// Reads a partition from this offset on, whether it was read before or not.
    pub(super) fn start(&mut self, partition: i32, next: i64) {
        let leader = self.partitions.get(&partition).and_then(|before| before.leader);
        self.stop(partition);
        self.runs += 1;
        self.partitions.insert(partition, Partition { run: self.runs, leader, next, leader_epoch: -1 });
    }

    /// Nothing more comes of this partition.
    pub(super) fn stop(&mut self, partition: i32) {
        self.partitions.remove(&partition);
        self.ready.retain(|piece| piece.partition != partition);
        self.current.take_if(|piece| piece.partition == partition);
        self.failed.retain(|failed| failed.partition != partition);
        self.ahead = self.ready.iter().chain(&self.current).map(|piece| piece.bytes).sum();
    }

    /// The next message, if one is there; never waits. A partition that cannot be read on says so once.
    pub(super) fn fetch(&mut self) -> Option<Result<Fetched<'_>, Unreadable>> {
        let (partition, message) = loop {
            if let Some(piece) = &mut self.current {
                match piece.chunk.next(&mut self.inflated) {
                    Ok(Some(message)) => break (piece.partition, message),
                    Ok(None) => self.finish_current(),
                    Err(damage) => {
                        let at = piece.chunk.at().unwrap_or(-1);
                        let reason = format!("the batch at offset {at}: {damage}");
                        let unreadable = Unreadable::damaged(piece.partition, reason);
                        return Some(Err(self.give_up(unreadable)));
                    }
                }
            }
            if self.ready.is_empty() || self.since_look >= LOOK {
                self.look();
            }
            if let Some(failed) = self.failed.pop_front() {
                return Some(Err(failed));
            }
            self.current = self.ready.pop_front();
            self.current.as_ref()?;
        };
        let Message { offset, timestamp_ms, key, value } = message;
        let body = self.current.as_ref().expect("the message is of it").chunk.body(&self.inflated);
        let (key, payload) = (key.map(|range| &body[range]), value.map(|range| &body[range]));
        Some(Ok(Fetched { partition, offset, timestamp_ms, key, payload }))
    }

    fn finish_current(&mut self) {
        if let Some(piece) = self.current.take() {
            self.ahead -= piece.bytes;
            self.since_look += piece.bytes;
        }
    }

    /// The partition is not read on.
    fn give_up(&mut self, unreadable: Unreadable) -> Unreadable {
        self.stop(unreadable.partition);
        unreadable
    }

    /// Takes what has come, and asks for more.
    fn look(&mut self) {
        let now = Instant::now();
        self.since_look = 0;
        if let Some(answer) = self.leaders.answer(now) {
            for (broker, connection) in answer.connections {
                let link = Link { connection, asked: BTreeMap::new(), first: 0, not_before: now };
                self.links.insert(broker, link);
            }
            for (id, partition) in &mut self.partitions {
                partition.leader = answer.leaders.get(id).copied();
            }
        }
        for broker in self.links.keys().copied().collect::<Vec<_>>() {
            if let Err(error) = self.serve(broker, now) {
                tracing::warn!(%error, broker, "consume");
                self.links.remove(&broker);
            }
        }
        let is_linked = |partition: &Partition| partition.leader.is_some_and(|id| self.links.contains_key(&id));
        if !self.partitions.values().all(is_linked) {
            self.leaders.ask(self.links.keys().copied().collect(), now);
        }
    }

    fn serve(&mut self, broker: i32, now: Instant) -> Result<(), connection::Error> {
        let link = self.links.get_mut(&broker).expect("it is one of them");
        if !link.connection.is_idle() {
            let Some(answer) = link.connection.answer()? else { return Ok(()) };
            link.not_before = now + Duration::from_millis(u64::try_from(answer.throttle_time_ms).unwrap_or(0));
            let asked = std::mem::take(&mut link.asked);
            self.take(answer, &asked)?;
        }
        self.ask(broker, now)
    }

    fn ask(&mut self, broker: i32, now: Instant) -> Result<(), connection::Error> {
        let link = self.links.get_mut(&broker).expect("it is one of them");
        if self.ahead >= AHEAD || now < link.not_before {
            return Ok(());
        }
        let led = |(_, partition): &(&i32, &Partition)| partition.leader == Some(broker);
        let turn = self.partitions.range(link.first..).chain(self.partitions.range(..link.first));
        let partitions: Vec<FetchPartition> = turn
            .filter(led)
            .map(|(id, partition)| {
                link.asked.insert(*id, (partition.run, partition.next));
                FetchPartition::default()
                    .with_partition(*id)
                    .with_fetch_offset(partition.next)
                    .with_last_fetched_epoch(partition.leader_epoch)
                    .with_partition_max_bytes(PARTITION_BYTES)
            })
            .collect();
        let Some(first) = partitions.first() else { return Ok(()) };
        link.first = first.partition + 1;
        let topic = FetchTopic::default().with_topic_id(self.topic_id).with_partitions(partitions);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(MAX_WAIT_MS)
            .with_min_bytes(MIN_BYTES)
            .with_max_bytes(ANSWER_BYTES)
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![topic]);
        link.connection.fetch(&request)
    }

    fn take(
        &mut self,
        answer: FetchResponse,
        asked: &BTreeMap<i32, (u64, i64)>,
    ) -> Result<(), connection::Error> {
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            return Err(connection::Error::Strange(error.to_string()));
        }
        for data in answer.responses.into_iter().flat_map(|topic| topic.partitions) {
            let id = data.partition_index;
            let Some((run, from)) = asked.get(&id) else { continue };
            if self.partitions.get(&id).is_some_and(|partition| partition.run == *run)
                && let Err(unreadable) = self.take_partition(data, *from)
            {
                let unreadable = self.give_up(unreadable);
                self.failed.push_back(unreadable);
            }
        }
        Ok(())
    }

    fn take_partition(&mut self, data: PartitionData, from: i64) -> Result<(), Unreadable> {
        let id = data.partition_index;
        let partition = self.partitions.get_mut(&id).expect("it was asked for");
        match ResponseError::try_from_code(data.error_code) {
            None => {}
            Some(ResponseError::OffsetOutOfRange) => return Err(Unreadable::out_of_range(id, from)),
            Some(error @ ResponseError::CorruptMessage) => {
                return Err(Unreadable::damaged(id, error.to_string()));
            }
            // It passes, once the brokers agree on who leads the partition. Whether the topic is still the same is looked at by others.
            Some(error) if error.is_retriable() || error == ResponseError::UnknownServerError => {
                tracing::debug!(%error, partition = id, "fetch");
                partition.leader = None;
                return Ok(());
            }
            Some(error) => return Err(Unreadable::damaged(id, error.to_string())),
        }
        if data.diverging_epoch.epoch >= 0 {
            let end = data.diverging_epoch.end_offset;
            return Err(Unreadable::damaged(
                id,
                format!("offset {from} is to be read next, but its log was cut off at {end} and written anew"),
            ));
        }
        let Some(records) = data.records.filter(|records| !records.is_empty()) else { return Ok(()) };
        let end = Chunk::end(&records).map_err(|damage| {
            Unreadable::damaged(id, format!("batches from offset {from} on: {damage}"))
        })?;
        // One that is cut off is asked for again, and comes whole when it is the first of an answer.
        let Some(end) = end else { return Ok(()) };
        partition.next = end.next;
        partition.leader_epoch = end.leader_epoch;
        let aborted = data.aborted_transactions.unwrap_or_default().into_iter().map(|aborted| Aborted {
            first_offset: aborted.first_offset,
            producer_id: aborted.producer_id.0,
        });
        let bytes = records.len();
        self.ahead += bytes;
        self.ready.push_back(Piece { partition: id, chunk: Chunk::new(records, from, aborted.collect()), bytes });
        Ok(())
    }
}
