//! Takes many messages out of librdkafka with one call.
//!
//! ```text
//!  broker ─► librdkafka ─► a queue per partition ─► LibrdkafkaQueues ─► message, borrowed
//!                     │                             many messages a call
//!                     └──► the consumer's queue ─► BaseConsumer::poll: rebalances, errors
//! ```
//!
//! rdkafka's safe wrapper takes one message a call, through an event each, which costs more CPU
//! than what is done with a small message. Here a partition's messages stay in the partition's own
//! queue, and a call takes as many as there are.
//!
//! The unsafe code relies on three promises of librdkafka 2.12:
//! - A queue that the application has forwarded, even to nowhere, is not forwarded again when
//!   reading starts. So a partition's messages stay in its queue.
//! - A message is valid until it is destroyed.
//! - Messages of an earlier assignment are dropped as they are taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use rdkafka_sys as sys;

use super::leader_epochs::known;
use super::{FetchedMessage, Membership, Unfit, Unreadable, known_end};

const NO_ERROR: sys::rd_kafka_resp_err_t = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

/// The most messages that one call takes.
const BATCH: usize = 512;

/// Moving positions is tried in rounds, which librdkafka's own threads answer. The rounds are
/// counted instead of timed, since time also passes for a process that is stopped.
const SEEK_CALL: Duration = Duration::from_millis(500);
const SEEK_PAUSE: Duration = Duration::from_millis(20);
const SEEK_ROUNDS: usize = 200;

/// Takes messages of the assigned partitions, in turn.
pub(super) struct LibrdkafkaQueues {
    topic: String,
    queues: BTreeMap<i32, PartitionQueue>,
    /// Messages `at..` of `batch` are taken out and not handed over yet; those before are destroyed
    /// or null.
    batch: Vec<*mut sys::rd_kafka_message_t>,
    at: usize,
    /// The message that was handed over last.
    current: Option<OwnedMessage>,
    /// The partition that `batch` is of; the partition after it is asked next.
    turn: i32,
    /// The last field, so that it is dropped after the queues and messages, which are its own.
    consumer: Arc<BaseConsumer<Membership>>,
}

struct PartitionQueue {
    handle: *mut sys::rd_kafka_queue_t,
    is_paused: bool,
    /// Messages that were taken out when the partition was paused or its turn ended, and not handed
    /// over yet.
    waiting: Vec<OwnedMessage>,
}

impl Drop for PartitionQueue {
    fn drop(&mut self) {
        // SAFETY: the handle came from `rd_kafka_queue_get_partition`, and is dropped once.
        unsafe { sys::rd_kafka_queue_destroy(self.handle) }
    }
}

struct OwnedMessage(*mut sys::rd_kafka_message_t);

impl OwnedMessage {
    fn into_raw(self) -> *mut sys::rd_kafka_message_t {
        std::mem::ManuallyDrop::new(self).0
    }
}

impl Drop for OwnedMessage {
    fn drop(&mut self) {
        // SAFETY: the message came from `rd_kafka_consume_batch_queue`, and is dropped once.
        unsafe { sys::rd_kafka_message_destroy(self.0) }
    }
}

impl LibrdkafkaQueues {
    pub(super) fn new(consumer: &Arc<BaseConsumer<Membership>>, topic: &str) -> LibrdkafkaQueues {
        LibrdkafkaQueues {
            topic: topic.to_owned(),
            queues: BTreeMap::new(),
            batch: Vec::with_capacity(BATCH),
            at: 0,
            current: None,
            turn: 0,
            consumer: Arc::clone(consumer),
        }
    }

    /// Reads these partitions from these offsets on, whether they were read before or not.
    pub(super) fn start(&mut self, from: &[(i32, i64)]) -> Result<(), KafkaError> {
        for (partition, _) in from {
            self.take_on(*partition);
        }
        let assignment = self.consumer.assignment()?;
        let assigned: BTreeSet<i32> =
            assignment.elements().iter().map(|element| element.partition()).collect();
        let (moved, new): (Vec<_>, Vec<_>) =
            from.iter().partition(|(partition, _)| assigned.contains(partition));
        self.seek(&moved)?;
        if new.is_empty() { Ok(()) } else { self.consumer.incremental_assign(&self.list(&new)?) }
    }

    /// Where the logs of the partitions end that are read, as brokers last told.
    pub(super) fn ends(&self) -> BTreeMap<i32, i64> {
        let client = self.consumer.client();
        let end = |partition: &i32| Some((*partition, known_end(client, &self.topic, *partition)?));
        self.queues.keys().filter_map(end).collect()
    }

    /// Moves positions. Messages that were fetched before are dropped as they are taken out.
    fn seek(&self, to: &[(i32, i64)]) -> Result<(), KafkaError> {
        let mut round = 1;
        while !to.is_empty() {
            let answered = self.consumer.seek_partitions(self.list(to)?, SEEK_CALL);
            let moved = answered.and_then(|answers| {
                answers.elements().iter().try_for_each(|element| element.error())
            });
            match moved {
                Ok(()) => break,
                Err(error) if round == SEEK_ROUNDS => return Err(error),
                // A partition that is only just being assigned has no position yet. All of them are
                // moved once more, which does no harm.
                Err(error) => {
                    tracing::debug!(%error, "librdkafka did not move positions; trying again");
                }
            }
            round += 1;
            std::thread::sleep(SEEK_PAUSE);
        }
        Ok(())
    }

    fn list(&self, offsets: &[(i32, i64)]) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, next) in offsets {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*next))?;
        }
        Ok(list)
    }

    /// Makes the partition's messages stay in its queue from its next assignment on. To be called
    /// before the partition is assigned.
    fn take_on(&mut self, partition: i32) {
        self.stop(partition);
        let topic = CString::new(self.topic.as_str()).expect("Kafka's topic names have no NUL");
        // SAFETY: the client lives as long as `consumer`; the returned handle is owned by
        // `PartitionQueue`, which is dropped before the consumer. Forwarding to null keeps the
        // messages in the queue itself.
        let queue = unsafe {
            let queue = sys::rd_kafka_queue_get_partition(self.client(), topic.as_ptr(), partition);
            assert!(!queue.is_null(), "a consumer has a queue for each partition");
            sys::rd_kafka_queue_forward(queue, ptr::null_mut());
            PartitionQueue { handle: queue, is_paused: false, waiting: Vec::new() }
        };
        self.queues.insert(partition, queue);
    }

    /// Forgets the partition, and what was taken out of it; it stays assigned.
    pub(super) fn stop(&mut self, partition: i32) {
        self.queues.remove(&partition);
        if self.turn == partition {
            self.drop_batch();
        }
    }

    /// Pauses a partition: nothing more comes of it until it is resumed. librdkafka goes on
    /// fetching as much ahead as it may.
    pub(super) fn pause(&mut self, partition: i32) {
        let Some(queue) = self.queues.get_mut(&partition) else { return };
        queue.is_paused = true;
        if self.turn == partition {
            self.end_turn();
        }
    }

    /// Ends the turn of the partition that is read right now: what comes next is of others, if they
    /// have something.
    pub(super) fn end_turn(&mut self) {
        if let Some(queue) = self.queues.get_mut(&self.turn) {
            queue.waiting.extend(self.batch.drain(..).skip(self.at).map(OwnedMessage));
            self.at = 0;
        }
    }

    pub(super) fn resume(&mut self, partition: i32) {
        if let Some(queue) = self.queues.get_mut(&partition) {
            queue.is_paused = false;
        }
    }

    /// The next message, if there is one; never waits. An error is about one partition.
    pub(super) fn fetch(&mut self) -> Option<Result<FetchedMessage<'_>, Unreadable>> {
        let message = loop {
            self.current = None;
            if self.at == self.batch.len() && !self.refill() {
                return None;
            }
            let taken = self.batch[self.at];
            self.at += 1;
            // SAFETY: librdkafka handed the message out valid, and it is destroyed only with
            // `current`, which outlives the borrow of `self` that the result carries.
            let message = unsafe { &*self.current.insert(OwnedMessage(taken)).0 };
            match RDKafkaErrorCode::from(message.err) {
                RDKafkaErrorCode::NoError => break message,
                error => {
                    if let Some(unreadable) = unreadable(message.partition, message.offset, error) {
                        return Some(Err(unreadable));
                    }
                    tracing::warn!(
                        %error,
                        partition = message.partition,
                        "trouble with a Kafka partition; librdkafka reads on"
                    );
                }
            }
        };
        Some(Ok(FetchedMessage {
            partition: message.partition,
            offset: message.offset,
            timestamp_ms: timestamp_ms(message),
            key: bytes(message, message.key, message.key_len),
            payload: bytes(message, message.payload, message.len),
            // SAFETY: the message is alive.
            leader_epoch: known(unsafe { sys::rd_kafka_message_leader_epoch(message) }),
            unfit: schema_header(message),
        }))
    }

    /// Takes messages out of the next partition in turn that has some; `false` if none has.
    fn refill(&mut self) -> bool {
        self.drop_batch();
        let after = self.queues.range(self.turn + 1..).chain(self.queues.range(..=self.turn));
        let after: Vec<i32> =
            after.filter(|(_, queue)| !queue.is_paused).map(|(id, _)| *id).collect();
        for partition in after {
            let queue = self.queues.get_mut(&partition).expect("it was seen just now");
            if !queue.waiting.is_empty() {
                self.batch.extend(queue.waiting.drain(..).map(OwnedMessage::into_raw));
                self.turn = partition;
                return true;
            }
            // SAFETY: the queue is alive, and the vector has room for as many pointers as the call
            // may write; it says how many it wrote.
            let taken = unsafe {
                sys::rd_kafka_consume_batch_queue(queue.handle, 0, self.batch.as_mut_ptr(), BATCH)
            };
            // Nothing but a wrong queue makes this fail.
            let taken = usize::try_from(taken).expect("the partition's queue can be read");
            if taken > 0 {
                // SAFETY: that many pointers were written just now.
                unsafe { self.batch.set_len(taken) };
                self.turn = partition;
                return true;
            }
        }
        false
    }

    fn drop_batch(&mut self) {
        for message in self.batch.drain(..).skip(self.at) {
            drop(OwnedMessage(message));
        }
        self.at = 0;
    }

    fn client(&self) -> *mut sys::rd_kafka_t {
        self.consumer.client().native_ptr()
    }
}

impl Drop for LibrdkafkaQueues {
    fn drop(&mut self) {
        self.drop_batch();
    }
}

/// The partition's error, if it ends the reading; other errors pass, and librdkafka goes on by
/// itself.
fn unreadable(partition: i32, offset: i64, code: RDKafkaErrorCode) -> Option<Unreadable> {
    match code {
        RDKafkaErrorCode::AutoOffsetReset => Some(Unreadable::out_of_range(partition, offset)),
        RDKafkaErrorCode::BadMessage
        | RDKafkaErrorCode::BadCompression
        | RDKafkaErrorCode::InvalidMessage
        | RDKafkaErrorCode::MessageSizeTooLarge
        | RDKafkaErrorCode::LogTruncation
        | RDKafkaErrorCode::UnknownPartition
        | RDKafkaErrorCode::UnknownTopic
        | RDKafkaErrorCode::UnknownTopicOrPartition
        | RDKafkaErrorCode::UnknownTopicId => {
            Some(Unreadable::damaged(partition, format!("at offset {offset}: {code}")))
        }
        _ => None,
    }
}

fn timestamp_ms(message: &sys::rd_kafka_message_t) -> Option<i64> {
    let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the message is alive, and came from librdkafka; the call reads it and writes `kind`.
    let timestamp_ms = unsafe { sys::rd_kafka_message_timestamp(message, &mut kind) };
    match kind {
        sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => None,
        _ => (timestamp_ms >= 0).then_some(timestamp_ms),
    }
}

/// Whether a header names the schema of the value.
fn schema_header(message: &sys::rd_kafka_message_t) -> Option<Unfit> {
    let name = CString::new(FetchedMessage::SCHEMA_HEADER).expect("it has no NUL");
    let (mut headers, mut value, mut bytes) = (ptr::null_mut(), ptr::null(), 0);
    // SAFETY: the message is alive, and owns the headers, whose value's length is all that is used.
    let found = unsafe {
        sys::rd_kafka_message_headers(message, &mut headers) == NO_ERROR
            && sys::rd_kafka_header_get_last(headers, name.as_ptr(), &mut value, &mut bytes)
                == NO_ERROR
    };
    (found && bytes == FetchedMessage::SCHEMA_HEADER_BYTES).then_some(Unfit::SchemaInHeader)
}

fn bytes(
    _owner: &sys::rd_kafka_message_t,
    data: *mut std::ffi::c_void,
    len: usize,
) -> Option<&[u8]> {
    if data.is_null() {
        return None;
    }
    // SAFETY: librdkafka's messages hold `len` bytes at `data` for as long as the message lives.
    Some(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) })
}
