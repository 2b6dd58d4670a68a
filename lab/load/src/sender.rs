//! The loop that sends: nothing in it allocates, and the clock is asked once a turn.

use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use indicatif::ProgressBar;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::util::Timeout;
use tally_counts::BucketWidth;
use tally_platform::config::Config;
use tally_schemas::{BatchEncoder, Increment, encode, wire};
use tokio_util::sync::CancellationToken;

use super::checksum::Checksum;
use super::summary::Summary;
use super::workload::Workload;
use crate::{LoadArgs, deliveries::Deliveries};

/// Single increments that go to one partition before the next has its turn: neighbours travel in
/// one request.
const TURN: u64 = 500;
/// Without a rate, fixed event times go on as if this were the rate.
const NOMINAL_RATE: u64 = 1_000_000;
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(5);
/// How long to sleep at once before the rate lets the next increment go: not so short that it wakes
/// for each message, not so long that a stop goes unseen. What was slept too long is caught up.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
const FLUSH_LIMIT: Duration = Duration::from_secs(120);

pub(super) struct Sender<'a> {
    args: &'a LoadArgs,
    schema_id: u32,
    workload: &'a Workload,
    topic: &'a str,
    width: BucketWidth,
    producer: BaseProducer<Deliveries>,
    message: Vec<u8>,
    id: String,
    batch: BatchEncoder,
    checksum: Checksum,
    sent: u64,
    messages: u64,
    bytes: u64,
    total: i64,
    partitions: Vec<u64>,
}

impl<'a> Sender<'a> {
    pub(super) fn new(
        config: &'a Config,
        workload: &'a Workload,
        args: &'a LoadArgs,
        schema_id: u32,
    ) -> anyhow::Result<Sender<'a>> {
        let producer: BaseProducer<Deliveries> =
            tally_kafka::producer(&config.kafka.cluster(), "tally-load")
                .set("linger.ms", "10")
                .set("batch.size", "1000000")
                .set("batch.num.messages", "10000")
                .set("queue.buffering.max.messages", "500000")
                .set("queue.buffering.max.kbytes", "131072")
                .create_with_context(Deliveries::default())?;
        let partitions = tally_kafka::partition_count(producer.client(), &config.kafka.increments)?;
        Ok(Sender {
            args,
            schema_id,
            workload,
            topic: &config.kafka.increments,
            width: config.counts.bucket_seconds,
            producer,
            message: Vec::new(),
            id: String::new(),
            batch: BatchEncoder::new(),
            checksum: Checksum::new(workload),
            sent: 0,
            messages: 0,
            bytes: 0,
            total: 0,
            partitions: vec![0; partitions as usize],
        })
    }

    /// Sends until as much as was asked for is sent, or `stop`, and returns once the log has
    /// answered for every message.
    pub(super) fn run(
        mut self,
        stop: &CancellationToken,
        progress: &ProgressBar,
    ) -> anyhow::Result<Summary> {
        let turn = match (self.args.batch(), self.args.rate) {
            (Some(batch), _) => batch,
            // A slow load is no series of bursts.
            (None, Some(rate)) => (rate / 1000).clamp(1, TURN),
            (None, None) => TURN,
        };
        let started = Instant::now();
        let mut partition = 0;
        loop {
            let left = self.args.count.map_or(turn, |count| turn.min(count - self.sent));
            if left == 0
                || stop.is_cancelled()
                || self.args.seconds.is_some_and(|seconds| started.elapsed().as_secs() >= seconds)
            {
                break;
            }
            if !self.wait_for_rate(started) {
                continue;
            }
            self.turn(left, partition)?;
            partition = (partition + 1) % self.partitions.len();
            self.producer.poll(Duration::ZERO);
            progress.set_position(self.producer.context().acknowledged());
        }
        let sending_seconds = started.elapsed().as_secs_f64();
        self.producer
            .flush(Timeout::After(FLUSH_LIMIT))
            .context("wait for the last acknowledgements")?;
        let seconds = started.elapsed().as_secs_f64();
        let deliveries = self.producer.context();
        progress.set_position(deliveries.acknowledged());
        Ok(Summary {
            increments: self.sent,
            messages: self.messages,
            bytes: self.bytes,
            acknowledged: deliveries.acknowledged(),
            failed: deliveries.failed(),
            sending_seconds,
            seconds,
            total: self.total,
            checksum: self.checksum.finish(self.workload).to_string(),
            partitions: self.partitions,
        })
    }

    /// Whether the next increment may go now; sleeps a little if not.
    fn wait_for_rate(&self, started: Instant) -> bool {
        let Some(rate) = self.args.rate else { return true };
        let due = Duration::from_secs_f64(self.sent as f64 / rate as f64);
        match due.checked_sub(started.elapsed()) {
            None => true,
            Some(early) => {
                // Not in the producer's poll, which spins through what is left of a millisecond.
                std::thread::sleep(early.clamp(SHORTEST_SLEEP, LONGEST_SLEEP));
                self.producer.poll(Duration::ZERO);
                false
            }
        }
    }

    /// Sends `count` increments of one event time to one partition.
    fn turn(&mut self, count: u64, partition: usize) -> anyhow::Result<()> {
        let at_ms = self.event_time()?;
        let bucket = self
            .width
            .bucket(at_ms)
            .map_err(|reason| anyhow::anyhow!("event time {at_ms}: {reason}"))?;
        self.checksum.open(bucket, self.workload);
        self.message.clear();
        self.message.extend_from_slice(&wire::prefix(self.schema_id));
        for number in self.sent..self.sent + count {
            let key = self.workload.pick(number);
            let (namespace, name) = self.workload.name(key);
            let delta = 1 + (number % 3) as i64;
            self.total += delta;
            self.checksum.add(key, delta);
            if self.args.ids {
                self.id.clear();
                let seed = self.args.seed;
                write!(self.id, "{seed}-{number}").expect("a string takes what it is given");
            }
            let id = self.args.ids.then_some(self.id.as_str());
            let increment = Increment { namespace, key: name, delta, at_ms, id };
            if self.args.batch().is_some() {
                self.batch.push(&increment);
            } else {
                self.message.truncate(wire::PREFIX_BYTES);
                encode::increment(&mut self.message, &increment);
                self.send(1, partition)?;
            }
        }
        if self.args.batch().is_some() {
            self.batch.finish(&mut self.message, None);
            self.send(count as usize, partition)?;
        }
        self.sent += count;
        self.partitions[partition] += count;
        Ok(())
    }

    fn event_time(&self) -> anyhow::Result<i64> {
        let at_ms = match self.args.at {
            Some(first) => first + self.sent * 1000 / self.args.rate.unwrap_or(NOMINAL_RATE),
            None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64,
        };
        i64::try_from(at_ms).context("the event time is out of range")
    }

    fn send(&mut self, increments: usize, partition: usize) -> anyhow::Result<()> {
        self.messages += 1;
        self.bytes += self.message.len() as u64;
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(self.topic, increments)
            .payload(&self.message[..])
            .partition(partition as i32);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    record = returned;
                    self.producer.poll(QUEUE_FULL_WAIT);
                }
                Err((error, _)) => return Err(error).context("send"),
            }
        }
    }
}
