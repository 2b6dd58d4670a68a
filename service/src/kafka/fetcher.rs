//! Taking messages out of librdkafka by the batch.
//!
//! ```text
//!  broker ─► librdkafka ─► a queue per partition ─► Fetcher: many messages a call ─► Message, borrowed
//!                     └──► the consumer's queue ─► BaseConsumer::poll: the group's decisions, errors
//! ```
//!
//! The safe wrapper takes one message a call, through an event each, which costs more than summing the message. Here a
//! partition's messages stay in the partition's own queue, and a call takes as many as there are.
//!
//! This is the only unsafe code of the hot path. What it relies on, of librdkafka 2.12: a queue that the application has
//! forwarded (even to nowhere) is not forwarded again when reading starts, so messages stay there; a message is valid
//! until it is destroyed; messages of an earlier assignment are dropped as they are taken out.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::ptr;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;

use super::Membership;

/// Messages taken in one call.
const BATCH: usize = 512;

/// A message that lives in librdkafka's memory until the next one is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Fetched<'m> {
    pub partition: i32,
    pub offset: i64,
    /// In milliseconds since the Unix epoch, if the log has one.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'m [u8]>,
    pub payload: Option<&'m [u8]>,
}

/// Takes messages of the assigned partitions, in turn.
pub struct Fetcher<'c> {
    consumer: &'c BaseConsumer<Membership>,
    queues: BTreeMap<i32, Queue>,
    /// Messages `at..` of `batch` are taken out and not handed over yet; those before are destroyed or null.
    batch: Vec<*mut sys::rd_kafka_message_t>,
    at: usize,
    /// The message that was handed over last.
    current: Option<Owned>,
    /// The partition that `batch` is of, and after which the next one is asked.
    turn: i32,
}

struct Queue(*mut sys::rd_kafka_queue_t);

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the handle came from `rd_kafka_queue_get_partition`, and is dropped once.
        unsafe { sys::rd_kafka_queue_destroy(self.0) }
    }
}

struct Owned(*mut sys::rd_kafka_message_t);

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the message came from `rd_kafka_consume_batch_queue`, and is dropped once.
        unsafe { sys::rd_kafka_message_destroy(self.0) }
    }
}

impl<'c> Fetcher<'c> {
    pub fn new(consumer: &'c BaseConsumer<Membership>) -> Fetcher<'c> {
        Fetcher {
            consumer,
            queues: BTreeMap::new(),
            batch: Vec::with_capacity(BATCH),
            at: 0,
            current: None,
            turn: 0,
        }
    }

    /// From the next assignment of this partition on, its messages come from here. Call it before it is assigned.
    pub fn take_on(&mut self, topic: &str, partition: i32) {
        self.let_go(partition);
        let topic = CString::new(topic).expect("Kafka's topic names have no NUL");
        // SAFETY: the client lives as long as `consumer`; the returned handle is owned by `Queue`, which is dropped before
        // the consumer. Forwarding to null keeps the messages in the queue itself.
        let queue = unsafe {
            let queue = sys::rd_kafka_queue_get_partition(self.client(), topic.as_ptr(), partition);
            assert!(!queue.is_null(), "a consumer has a queue for each partition");
            sys::rd_kafka_queue_forward(queue, ptr::null_mut());
            Queue(queue)
        };
        self.queues.insert(partition, queue);
    }

    /// Forgets the partition, and what was taken out of it.
    pub fn let_go(&mut self, partition: i32) {
        self.queues.remove(&partition);
        if self.turn == partition {
            self.drop_batch();
        }
    }

    /// The next message, if there is one; never waits. An error is the partition's.
    pub fn fetch(&mut self) -> Option<Result<Fetched<'_>, (i32, RDKafkaErrorCode)>> {
        self.current = None;
        if self.at == self.batch.len() && !self.refill() {
            return None;
        }
        let taken = self.batch[self.at];
        self.at += 1;
        let message = &self.current.insert(Owned(taken)).0;
        // SAFETY: librdkafka handed the message out valid, and it is destroyed only with `current`, which outlives the
        // borrow of `self` that the result carries.
        let message = unsafe { &**message };
        match message.err {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Some(Ok(Fetched {
                partition: message.partition,
                offset: message.offset,
                timestamp_ms: timestamp_ms(message),
                key: bytes(message, message.key, message.key_len),
                payload: bytes(message, message.payload, message.len),
            })),
            error => Some(Err((message.partition, error.into()))),
        }
    }

    /// Takes messages out of the first partition after the last one that has some.
    fn refill(&mut self) -> bool {
        self.drop_batch();
        let after = self.queues.range(self.turn + 1..).chain(self.queues.range(..=self.turn));
        for (partition, queue) in after {
            // SAFETY: the queue is alive, and the vector has room for as many pointers as the call may write; it says how many
            // it wrote.
            let taken =
                unsafe { sys::rd_kafka_consume_batch_queue(queue.0, 0, self.batch.as_mut_ptr(), BATCH) };
            // Nothing but a wrong queue makes this fail.
            let taken = usize::try_from(taken).expect("the partition's queue can be read");
            if taken > 0 {
                // SAFETY: that many pointers were written just now.
                unsafe { self.batch.set_len(taken) };
                self.turn = *partition;
                return true;
            }
        }
        false
    }

    fn drop_batch(&mut self) {
        for message in self.batch.drain(..).skip(self.at) {
            drop(Owned(message));
        }
        self.at = 0;
    }

    fn client(&self) -> *mut sys::rd_kafka_t {
        self.consumer.client().native_ptr()
    }
}

impl Drop for Fetcher<'_> {
    fn drop(&mut self) {
        self.drop_batch();
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

fn bytes(_owner: &sys::rd_kafka_message_t, data: *mut std::ffi::c_void, len: usize) -> Option<&[u8]> {
    if data.is_null() {
        return None;
    }
    // SAFETY: librdkafka's messages hold `len` bytes at `data` for as long as the message lives.
    Some(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) })
}
