//! The yardstick of consuming: librdkafka alone, every message taken out and thrown away.
//!
//! Runs in a process of its own, so that its CPU is its own.

use std::ptr;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rdkafka_sys as sys;
use serde::{Deserialize, Serialize};
use tally_platform::config::Config;

use super::measure;

const BATCH: usize = 10_000;
const WAIT_MS: i32 = 100;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Discarded {
    pub(crate) messages: u64,
    /// The time from the first message to the last, and the CPU of the process in it.
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

impl Discarded {
    pub(crate) fn per_second(&self) -> f64 {
        self.messages as f64 / self.seconds.max(1e-9)
    }
}

/// Reads `increments` as it is now, from its beginning to its end.
pub(super) fn run(config: &Config) -> anyhow::Result<Discarded> {
    let topic = &config.kafka.increments;
    let consumer: BaseConsumer =
        tally_kafka::consumer(&config.kafka.cluster(), "tally-bench", "tally-bench")
            .set("fetch.message.max.bytes", "4194304")
            .set("fetch.max.bytes", "52428800")
            .set("receive.message.max.bytes", "67108864")
            .set("queued.min.messages", "1000000")
            .set("queued.max.messages.kbytes", "262144")
            .create()?;
    let mut all = TopicPartitionList::new();
    let mut left = 0;
    for partition in 0..tally_kafka::partition_count(consumer.client(), topic)? {
        let (first, next) = tally_kafka::watermarks(consumer.client(), topic, partition)?;
        left += (next - first).cast_unsigned();
        all.add_partition_offset(topic, partition, Offset::Offset(first))?;
    }
    let queue = Queue::of(&consumer);
    consumer.assign(&all)?;
    let mut batch = Vec::with_capacity(BATCH);
    let mut discarded = Discarded { messages: 0, seconds: 0.0, cpu_seconds: 0.0 };
    let mut begun = None;
    let mut heard = Instant::now();
    while discarded.messages < left {
        let messages = queue.discard(&mut batch)?;
        if messages > 0 {
            heard = Instant::now();
            begun.get_or_insert((heard, measure::own_cpu()));
        }
        anyhow::ensure!(heard.elapsed() < PATIENCE, "{topic} does not come to its end");
        discarded.messages += messages;
    }
    if let Some((at, cpu)) = begun {
        discarded.seconds = at.elapsed().as_secs_f64();
        discarded.cpu_seconds = (measure::own_cpu() - cpu).as_secs_f64();
    }
    Ok(discarded)
}

/// The consumer's queue, into which all partitions' queues are forwarded.
struct Queue<'c> {
    handle: *mut sys::rd_kafka_queue_t,
    _consumer: &'c BaseConsumer,
}

impl<'c> Queue<'c> {
    fn of(consumer: &'c BaseConsumer) -> Queue<'c> {
        // SAFETY: the client is alive as long as `consumer`, which the queue borrows.
        let handle = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        assert!(!handle.is_null(), "a consumer with a group has a queue");
        Queue { handle, _consumer: consumer }
    }

    /// Takes what there is, up to the room in `batch`, and throws it away: how many messages.
    fn discard(&self, batch: &mut Vec<*mut sys::rd_kafka_message_t>) -> anyhow::Result<u64> {
        batch.resize(BATCH, ptr::null_mut());
        // SAFETY: the queue is alive, and `batch` has room for as many pointers as it says.
        let taken = unsafe {
            sys::rd_kafka_consume_batch_queue(self.handle, WAIT_MS, batch.as_mut_ptr(), batch.len())
        };
        let taken =
            usize::try_from(taken).map_err(|_| anyhow::anyhow!("librdkafka does not consume"))?;
        let (mut messages, mut failed) = (0, None);
        for message in &batch[..taken] {
            // SAFETY: the first `taken` pointers are messages that are ours now; each is read, then
            // destroyed once.
            unsafe {
                match (**message).err {
                    sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => messages += 1,
                    error => failed = Some(error),
                }
                sys::rd_kafka_message_destroy(*message);
            }
        }
        match failed {
            None => Ok(messages),
            Some(error) => {
                Err(anyhow::anyhow!("consume: {}", rdkafka::error::RDKafkaErrorCode::from(error)))
            }
        }
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from `rd_kafka_queue_get_consumer`, and is dropped once, before
        // the consumer.
        unsafe { sys::rd_kafka_queue_destroy(self.handle) }
    }
}
