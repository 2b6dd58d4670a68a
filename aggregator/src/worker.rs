//! One member of the group: polls, folds, decides when to flush, and gives partitions up or takes them on as the group
//! says. All state is this thread's own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage};
use rdkafka::{Offset, TopicPartitionList};
use tally_counts::Reject;
use tally_schemas::{Increment, avsc};
use tally_service::config::Config;
use tally_service::health::{Condition, Health, Heartbeat};
use tally_service::kafka::{self, Membership, Rebalance};
use tally_service::plans::Plans;
use tally_service::registry::Registry;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::committer::{Committer, Job, Outcome};
use crate::core::{Core, Due, Limits, Rejected, encode};
use crate::metrics::{Metrics, Pending};

/// Messages folded between two looks at everything else.
const MESSAGES_PER_TURN: usize = 1024;
/// The longest wait for a message.
const POLL: Duration = Duration::from_millis(100);
/// One call to the group's coordinator, and how long they are repeated.
const OFFSETS_CALL: Duration = Duration::from_secs(10);
const OFFSETS_DEADLINE: Duration = Duration::from_secs(120);
/// Between two questions to a registry that does not answer.
const REGISTRY_RETRY: Duration = Duration::from_millis(500);
/// The longest that a healthy worker does not come round: transactions and offset look-ups are shorter.
const MAX_SILENCE: Duration = Duration::from_secs(180);

pub(crate) fn run(
    config: &Config,
    name: &str,
    health: &Health,
    stop: &CancellationToken,
    runtime: &Handle,
) -> Result<(), Error> {
    let ready = health.condition("partitions assigned");
    let heartbeat = health.heartbeat("fold", MAX_SILENCE);
    let registry = Registry::new(&config.registry)?;
    let Some(schema_id) = register(config, &registry, stop, runtime) else { return Ok(()) };
    let consumer: BaseConsumer<Membership> = kafka::consumer(&config.kafka, name, &config.aggregator.group)
        .set("session.timeout.ms", config.aggregator.session_timeout_ms.to_string())
        .create_with_context(Membership::default())
        .map_err(Error::kafka("make a consumer"))?;
    let topic_id = kafka::topic_id(consumer.client(), &config.kafka.increments)?;
    check_partitions(config, &consumer)?;
    let committer = Committer::start(&config.kafka, name)?;
    consumer.subscribe(&[&config.kafka.increments]).map_err(Error::kafka("subscribe"))?;
    tracing::info!(name, topic_id, "worker started");
    let limits = Limits {
        interval: config.aggregator.flush_interval(),
        batch_bytes: config.aggregator.flush_batch_bytes,
        total_bytes: config.aggregator.flush_total_bytes,
    };
    let worker = Worker {
        config,
        schema_id,
        topic_id,
        core: Core::new(config.counts.bucket_seconds, limits),
        plans: Plans::new(registry),
        stalled: BTreeMap::new(),
        retry_at: Instant::now(),
        committer,
        pending: None,
        metrics: Metrics::new(),
        ready,
        heartbeat,
        runtime: runtime.clone(),
    };
    worker.run(&consumer, stop)
}

/// The id of the batches' schema; waits for a registry that is down.
fn register(config: &Config, registry: &Registry, stop: &CancellationToken, runtime: &Handle) -> Option<u32> {
    let subject = format!("{}-value", config.kafka.deltas);
    while !stop.is_cancelled() {
        match runtime.block_on(registry.register(&subject, avsc::DELTA_BATCH)) {
            Ok(id) => return Some(id),
            Err(error) => tracing::warn!(%error, subject, "wait for the schema registry"),
        }
        runtime.block_on(async {
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(REGISTRY_RETRY) => {} }
        });
    }
    None
}

fn check_partitions(config: &Config, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
    let count = |topic| kafka::partition_count(consumer.client(), topic);
    let (need, have) = (count(&config.kafka.increments)?, count(&config.kafka.deltas)?);
    match have >= need {
        true => Ok(()),
        false => Err(Error::TooFewPartitions {
            deltas: config.kafka.deltas.clone(),
            have,
            increments: config.kafka.increments.clone(),
            need,
        }),
    }
}

struct Worker<'c> {
    config: &'c Config,
    schema_id: u32,
    topic_id: String,
    core: Core,
    plans: Plans,
    /// Messages that wait for the registry, one a paused partition.
    stalled: BTreeMap<i32, OwnedMessage>,
    retry_at: Instant,
    committer: Committer,
    /// The flush in flight, and since when.
    pending: Option<(Pending, Instant)>,
    metrics: Metrics,
    ready: Condition,
    heartbeat: Heartbeat,
    runtime: Handle,
}

impl Worker<'_> {
    fn run(mut self, consumer: &BaseConsumer<Membership>, stop: &CancellationToken) -> Result<(), Error> {
        while !stop.is_cancelled() {
            self.heartbeat.beat();
            self.carry_out_decisions(consumer)?;
            if let Some(outcome) = self.committer.poll() {
                self.settle(outcome?, consumer)?;
            }
            self.ask_again(consumer)?;
            let wait = self.flush_if_due(consumer)?;
            self.fold_messages(consumer, wait)?;
        }
        self.leave(consumer)
    }

    fn topic(&self) -> &str {
        &self.config.kafka.increments
    }

    /// Folds what is there, and waits up to `wait` where nothing is.
    fn fold_messages(&mut self, consumer: &BaseConsumer<Membership>, wait: Duration) -> Result<(), Error> {
        let mut increments = Vec::new();
        let now = Instant::now();
        for turn in 0..MESSAGES_PER_TURN {
            let wait = if turn == 0 { wait } else { Duration::ZERO };
            match consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    increments = self.fold(&message, increments, now);
                    if self.stalled.contains_key(&message.partition()) {
                        self.pause(consumer, message.partition())?;
                    }
                    if self.core.due() == Due::Now {
                        break;
                    }
                }
                Some(Err(error)) => self.consume_error(error)?,
            }
        }
        self.core.measure();
        Ok(())
    }

    /// Counts or rejects a message, or notes that its partition must wait. Gives the buffer back, empty.
    fn fold<'a>(
        &mut self,
        message: &BorrowedMessage<'_>,
        buffer: Vec<Increment<'a>>,
        now: Instant,
    ) -> Vec<Increment<'a>> {
        let payload = message.payload().unwrap_or(b"");
        if !self.plans.is_known(payload)
            && let Err(error) = self.runtime.block_on(self.plans.learn(payload))
        {
            let (partition, offset) = (message.partition(), message.offset());
            tracing::warn!(%error, partition, offset, "the partition waits for the schema registry");
            self.stalled.insert(message.partition(), message.detach());
            self.retry_at = now + REGISTRY_RETRY;
            return buffer;
        }
        self.count(message, buffer, now)
    }

    /// Counts or rejects a message whose schema is known.
    fn count<'a>(
        &mut self,
        message: &impl Message,
        buffer: Vec<Increment<'a>>,
        now: Instant,
    ) -> Vec<Increment<'a>> {
        let (partition, offset) = (message.partition(), message.offset());
        let payload = message.payload();
        let mut increments = reuse(buffer);
        let refused = match self.plans.decode(payload.unwrap_or(b""), &mut increments) {
            Ok(()) => match self.core.count(partition, offset, &increments, now) {
                Ok(()) => None,
                Err(reason) => Some((reason, describe(reason, &increments))),
            },
            Err(refusal) => Some((refusal.reason, refusal.detail)),
        };
        if let Some((reason, detail)) = refused {
            tracing::debug!(partition, offset, %reason, detail, "rejected");
            let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            let (key, payload) = (owned(message.key()), owned(payload));
            self.core.reject(Rejected { partition, offset, reason, detail, key, payload }, now);
        }
        reuse(increments)
    }

    fn consume_error(&self, error: KafkaError) -> Result<(), Error> {
        match error {
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
            ) => Err(Error::OffsetGone { topic: self.topic().to_owned(), positions: self.core.position() }),
            KafkaError::MessageConsumptionFatal(_) => Err(Error::Kafka { what: "consume", source: error }),
            // Brokers come and go; librdkafka connects again by itself.
            error => {
                tracing::warn!(%error, "consume");
                Ok(())
            }
        }
    }

    /// Starts a flush when one is due and the last one is through; says how long there is nothing to do here.
    fn flush_if_due(&mut self, consumer: &BaseConsumer<Membership>) -> Result<Duration, Error> {
        match self.core.due() {
            Due::Never => Ok(POLL),
            Due::At(when) => match when.checked_duration_since(Instant::now()) {
                Some(left) => Ok(left.min(POLL)),
                None if self.committer.is_idle() => {
                    self.flush(consumer, |_| true)?;
                    Ok(POLL)
                }
                None => Ok(Duration::from_millis(5)),
            },
            Due::Now => {
                self.wait_for_flush(consumer)?;
                self.flush(consumer, |_| true)?;
                Ok(Duration::ZERO)
            }
        }
    }

    /// Hands what the `wanted` partitions hold to the committer, which must be idle.
    fn flush(
        &mut self,
        consumer: &BaseConsumer<Membership>,
        wanted: impl Fn(i32) -> bool,
    ) -> Result<(), Error> {
        let started = Instant::now();
        let (flushes, rejected) = self.core.take(wanted);
        if flushes.is_empty() {
            return Ok(());
        }
        let mut pending =
            Pending { rejected: rejected.iter().map(|r| r.reason).collect(), ..Pending::default() };
        let mut offsets = TopicPartitionList::new();
        let mut batches = Vec::with_capacity(flushes.len());
        for (partition, flush) in &flushes {
            pending.messages += flush.counted + flush.duplicate + flush.rejected;
            pending.increments += flush.increments;
            pending.deltas += flush.sums.len() as u64;
            batches.push((*partition, encode(self.schema_id, &self.topic_id, *partition, flush)));
            offsets
                .add_partition_offset(self.topic(), *partition, Offset::Offset(flush.to))
                .map_err(Error::kafka("list offsets"))?;
        }
        let group = consumer.group_metadata().expect("the consumer has a group");
        self.committer.submit(Job { batches, rejected, offsets, group });
        self.pending = Some((pending, started));
        Ok(())
    }

    /// Waits for the flush in flight, if there is one.
    fn wait_for_flush(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        match self.committer.wait() {
            Some(outcome) => self.settle(outcome?, consumer),
            None => Ok(()),
        }
    }

    fn settle(&mut self, outcome: Outcome, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let (pending, started) = self.pending.take().expect("a flush was in flight");
        match outcome {
            Outcome::Committed => {
                self.metrics.committed(&pending, started.elapsed().as_secs_f64());
                Ok(())
            }
            Outcome::NotCommitted => {
                self.metrics.not_committed();
                self.rewind(consumer)
            }
        }
    }

    /// Drops every sum, and reads on from the committed offsets.
    fn rewind(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let mut partitions = TopicPartitionList::new();
        for partition in self.core.partitions().collect::<Vec<_>>() {
            partitions.add_partition(self.topic(), partition);
            self.core.forget(partition);
            self.stalled.remove(&partition);
        }
        if partitions.count() == 0 {
            return Ok(());
        }
        consumer.incremental_unassign(&partitions).map_err(Error::kafka("stop reading"))?;
        self.take_on(consumer, &partitions)
    }

    /// Starts each partition at its committed offset, or at the log's beginning if there is none yet.
    fn take_on(
        &mut self,
        consumer: &BaseConsumer<Membership>,
        partitions: &TopicPartitionList,
    ) -> Result<(), Error> {
        let committed = committed(consumer, partitions)?;
        let mut start = TopicPartitionList::new();
        for element in committed.elements() {
            let partition = element.partition();
            let from = match element.offset() {
                Offset::Offset(next) => next,
                _ => kafka::watermarks(consumer.client(), self.topic(), partition)?.0,
            };
            start
                .add_partition_offset(self.topic(), partition, Offset::Offset(from))
                .map_err(Error::kafka("list offsets"))?;
            self.core.assign(partition, from);
        }
        consumer.incremental_assign(&start).map_err(Error::kafka("start reading"))?;
        // A partition that waited for the registry was paused, and librdkafka remembers that.
        consumer.resume(&start).map_err(Error::kafka("start reading"))
    }

    fn carry_out_decisions(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        while let Some(decision) = consumer.context().next_decision() {
            match decision {
                Rebalance::Assign(partitions) => {
                    self.take_on(consumer, &partitions)?;
                    self.ready.set(true, "");
                }
                Rebalance::Revoke(partitions) => self.let_go(consumer, &partitions)?,
            }
            let now = self.core.partitions().collect::<Vec<_>>();
            tracing::info!(partitions = ?now, "assignment changed");
        }
        Ok(())
    }

    /// Finishes the partitions' flushes before others may have them; where they are lost already, drops their sums.
    fn let_go(
        &mut self,
        consumer: &BaseConsumer<Membership>,
        partitions: &TopicPartitionList,
    ) -> Result<(), Error> {
        let leaving: Vec<i32> = partitions.elements().iter().map(|element| element.partition()).collect();
        self.wait_for_flush(consumer)?;
        if !consumer.assignment_lost() {
            self.flush(consumer, |partition| leaving.contains(&partition))?;
            self.wait_for_flush(consumer)?;
        }
        for partition in leaving {
            self.core.forget(partition);
            self.stalled.remove(&partition);
        }
        consumer.incremental_unassign(partitions).map_err(Error::kafka("let partitions go"))
    }

    /// Flushes everything, and leaves the group.
    fn leave(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        self.ready.set(false, "stopping");
        self.carry_out_decisions(consumer)?;
        self.wait_for_flush(consumer)?;
        self.flush(consumer, |_| true)?;
        self.wait_for_flush(consumer)?;
        consumer.context().leave();
        tracing::info!("worker drained");
        Ok(())
    }

    fn pause(&self, consumer: &BaseConsumer<Membership>, partition: i32) -> Result<(), Error> {
        let mut paused = TopicPartitionList::new();
        paused.add_partition(self.topic(), partition);
        consumer.pause(&paused).map_err(Error::kafka("pause a partition"))
    }

    /// Asks the registry again for the schemas that partitions wait for.
    fn ask_again(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let now = Instant::now();
        if self.stalled.is_empty() || now < self.retry_at {
            return Ok(());
        }
        while let Some((partition, message)) = self.stalled.pop_first() {
            let payload = message.payload().unwrap_or(b"");
            if let Err(error) = self.runtime.block_on(self.plans.learn(payload)) {
                tracing::debug!(%error, partition, "the partition still waits for the schema registry");
                self.stalled.insert(partition, message);
                self.retry_at = Instant::now() + REGISTRY_RETRY;
                return Ok(());
            }
            self.count(&message, Vec::new(), now);
            let mut resumed = TopicPartitionList::new();
            resumed.add_partition(self.topic(), partition);
            consumer.resume(&resumed).map_err(Error::kafka("resume a partition"))?;
            tracing::info!(partition, "the schema registry answers again");
        }
        Ok(())
    }
}

/// The committed offsets, stable ones: the broker waits for transactions that could still change them.
fn committed(
    consumer: &BaseConsumer<Membership>,
    partitions: &TopicPartitionList,
) -> Result<TopicPartitionList, Error> {
    let deadline = Instant::now() + OFFSETS_DEADLINE;
    loop {
        match consumer.committed_offsets(partitions.clone(), OFFSETS_CALL) {
            Ok(committed) => match committed.elements().iter().find_map(|element| element.error().err()) {
                None => return Ok(committed),
                Some(source) if Instant::now() >= deadline => {
                    return Err(Error::Kafka { what: "read committed offsets", source });
                }
                Some(error) => tracing::warn!(%error, "read committed offsets again"),
            },
            Err(source) if Instant::now() >= deadline => {
                return Err(Error::Kafka { what: "read committed offsets", source });
            }
            Err(error) => tracing::warn!(%error, "read committed offsets again"),
        }
    }
}

/// The same allocation for the increments of another message.
fn reuse<'b>(mut buffer: Vec<Increment<'_>>) -> Vec<Increment<'b>> {
    buffer.clear();
    buffer.into_iter().map(|_| unreachable!("the buffer is empty")).collect()
}

/// Which increment a message was rejected for.
fn describe(reason: Reject, increments: &[Increment<'_>]) -> String {
    let named =
        |i: &Increment<'_>| format!("namespace {:?}, key {:?}, at {} ms", i.namespace, i.key, i.at_ms);
    match increments {
        [only] => format!("{reason}: {}", named(only)),
        many => format!("{reason} in a batch of {} increments", many.len()),
    }
}
