//! How far Kafka's topics and their readers are, seen from outside.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_counts::Fingerprint;
use tally_platform::config::Config;
use tally_schemas::{DeltaBatch, wire};

const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Without a message for so long, the rest does not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Next offsets, by partition.
pub(crate) type Offsets = Vec<i64>;

pub(crate) struct Log {
    config: Config,
    /// Names the aggregators' group, to read its committed offsets, and never joins it.
    consumer: BaseConsumer,
    partitions: i32,
}

impl Log {
    pub(crate) fn new(config: &Config) -> anyhow::Result<Log> {
        let consumer: BaseConsumer = tally_kafka::client(&config.kafka.cluster(), "tally-bench")
            .set("group.id", &config.aggregator.group)
            .set("enable.auto.commit", "false")
            // What is committed now: not what an open transaction will make of it.
            .set("isolation.level", "read_uncommitted")
            .create()?;
        let partitions = tally_kafka::partition_count(consumer.client(), &config.kafka.increments)?;
        Ok(Log { config: config.clone(), consumer, partitions })
    }

    /// The next offsets that the partitions of `increments` will give.
    pub(crate) fn ends(&self) -> anyhow::Result<Offsets> {
        self.ends_of(&self.config.kafka.increments)
    }

    fn ends_of(&self, topic: &str) -> anyhow::Result<Offsets> {
        let end =
            |partition| Ok(tally_kafka::watermarks(self.consumer.client(), topic, partition)?.1);
        (0..self.partitions).map(end).collect()
    }

    /// What the aggregators have committed.
    pub(crate) fn committed(&self) -> anyhow::Result<Offsets> {
        let topic = &self.config.kafka.increments;
        let mut asked = TopicPartitionList::new();
        for partition in 0..self.partitions {
            asked.add_partition(topic, partition);
        }
        let answered = self.consumer.committed_offsets(asked, CALL_LIMIT)?;
        let mut offsets = vec![0; self.partitions as usize];
        for element in answered.elements() {
            element.error()?;
            if let Offset::Offset(next) = element.offset() {
                offsets[element.partition() as usize] = next;
            }
        }
        Ok(offsets)
    }

    /// Calls `each` for every batch on `deltas`, in the order of its partition.
    pub(crate) fn batches(
        &self,
        mut each: impl FnMut(Batch<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let topic = &self.config.kafka.deltas;
        let reader: BaseConsumer =
            tally_kafka::consumer(&self.config.kafka.cluster(), "tally-bench", "tally-bench")
                .set("enable.partition.eof", "true")
                .create()?;
        let mut all = TopicPartitionList::new();
        for partition in 0..self.partitions {
            all.add_partition_offset(topic, partition, Offset::Offset(0))?;
        }
        reader.assign(&all)?;
        let mut open = self.partitions;
        let mut heard = Instant::now();
        while open > 0 {
            match reader.poll(Duration::from_millis(100)) {
                None => {
                    anyhow::ensure!(heard.elapsed() < PATIENCE, "{topic} does not come to its end")
                }
                Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
                Some(message) => {
                    let message = message?;
                    heard = Instant::now();
                    let (_, body) = wire::split(message.payload().unwrap_or(b""))?;
                    each(Batch {
                        offset: message.offset(),
                        logged_at_ms: message.timestamp().to_millis().unwrap_or(0),
                        content: DeltaBatch::decode(body)?,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// What all batches on `deltas` come to.
    pub(crate) fn deltas(&self) -> anyhow::Result<Deltas> {
        let mut sum = Deltas::default();
        self.batches(|batch| {
            sum.batches += 1;
            sum.rows += batch.content.deltas.announced() as u64;
            sum.increments += batch.content.header.increments;
            sum.fingerprint += Fingerprint::from_bits(batch.content.header.fingerprint);
            Ok(())
        })?;
        Ok(sum)
    }
}

pub(crate) struct Batch<'m> {
    pub(crate) offset: i64,
    pub(crate) logged_at_ms: i64,
    pub(crate) content: DeltaBatch<'m>,
}

#[derive(Debug, Default)]
pub(crate) struct Deltas {
    pub(crate) batches: u64,
    pub(crate) rows: u64,
    pub(crate) increments: u64,
    pub(crate) fingerprint: Fingerprint,
}

/// How many offsets `behind` is behind `ahead`.
pub(crate) fn lag(ahead: &[i64], behind: &[i64]) -> u64 {
    ahead.iter().zip(behind).map(|(ahead, behind)| (ahead - behind).max(0).cast_unsigned()).sum()
}
