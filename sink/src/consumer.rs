//! The sink's member of the group: hands batches to the partitions' tasks, each of which starts at the ledger's position.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use clickhouse::Client;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::{Offset, TopicPartitionList};
use tally_service::config::Config;
use tally_service::health::{Condition, Health, Heartbeat};
use tally_service::kafka::{self, Membership, Rebalance};
use tally_service::store::{self, Ledger};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::metrics::Metrics;
use crate::partition::{Broken, End, Partition, Stored};

/// The longest wait for a message, with and without one that waits for room.
const POLL: Duration = Duration::from_millis(50);
const POLL_HELD: Duration = Duration::from_millis(2);
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const LEDGER_RETRY: Duration = Duration::from_secs(1);
/// How long an insert in flight may go on after its partition is to be let go; an abandoned one does no harm.
const RELEASE: Duration = Duration::from_secs(5);
/// The longest that a healthy loop does not come round, but while the store is away.
const MAX_SILENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(
    config: &Config,
    health: &Health,
    stop: &CancellationToken,
    runtime: &Handle,
) -> Result<(), Error> {
    let consumer: BaseConsumer<Membership> = kafka::consumer(&config.kafka, "tally-sink", &config.sink.group)
        .set("session.timeout.ms", config.sink.session_timeout_ms.to_string())
        .create_with_context(Membership::default())
        .map_err(Error::kafka("make a consumer"))?;
    let topic_id = kafka::topic_id(consumer.client(), &config.kafka.deltas)?;
    consumer.subscribe(&[&config.kafka.deltas]).map_err(Error::kafka("subscribe"))?;
    tracing::info!(topic_id, "sink started");
    let sink = Sink {
        config,
        client: store::client(&config.store),
        topic_id,
        lanes: BTreeMap::new(),
        broken: BTreeSet::new(),
        metrics: Metrics::new(),
        assigned: health.condition("partitions assigned"),
        whole: health.condition("every partition whole"),
        heartbeat: health.heartbeat("consume", MAX_SILENCE),
        runtime: runtime.clone(),
        stop,
    };
    sink.whole.set(true, "");
    sink.run(&consumer)
}

struct Sink<'c> {
    config: &'c Config,
    client: Client,
    topic_id: String,
    lanes: BTreeMap<i32, Lane>,
    broken: BTreeSet<i32>,
    metrics: Metrics,
    assigned: Condition,
    whole: Condition,
    heartbeat: Heartbeat,
    runtime: Handle,
    stop: &'c CancellationToken,
}

/// An assigned partition: its task, and what is on the way there.
struct Lane {
    task: JoinHandle<End>,
    batches: mpsc::Sender<OwnedMessage>,
    /// A batch that found no room; the partition is paused meanwhile.
    held: Option<OwnedMessage>,
    position: watch::Receiver<i64>,
    committed: i64,
    attempt: u32,
}

impl Sink<'_> {
    fn run(mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let mut next_commit = Instant::now() + COMMIT_INTERVAL;
        while !self.stop.is_cancelled() {
            self.heartbeat.beat();
            self.carry_out_decisions(consumer)?;
            self.look_after_tasks(consumer)?;
            self.hand_over_held(consumer)?;
            self.take_messages(consumer)?;
            if Instant::now() >= next_commit {
                self.commit(consumer, CommitMode::Async)?;
                next_commit = Instant::now() + COMMIT_INTERVAL;
            }
        }
        self.leave(consumer)
    }

    fn list(&self, partitions: impl IntoIterator<Item = (i32, i64)>) -> Result<TopicPartitionList, Error> {
        let mut list = TopicPartitionList::new();
        for (partition, next) in partitions {
            list.add_partition_offset(&self.config.kafka.deltas, partition, Offset::Offset(next))
                .map_err(Error::kafka("list partitions"))?;
        }
        Ok(list)
    }

    fn take_messages(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let waiting = self.lanes.values().any(|lane| lane.held.is_some());
        let mut wait = if waiting { POLL_HELD } else { POLL };
        while let Some(polled) = consumer.poll(wait) {
            wait = Duration::ZERO;
            match polled {
                Ok(message) => {
                    let partition = message.partition();
                    // A partition that stopped is paused, but what was on its way still comes.
                    let Some(lane) = self.lanes.get_mut(&partition) else { continue };
                    if let Err(TrySendError::Full(message)) = lane.batches.try_send(message.detach()) {
                        lane.held = Some(message);
                        let paused = self.list([(partition, 0)])?;
                        consumer.pause(&paused).map_err(Error::kafka("pause a partition"))?;
                    }
                }
                Err(
                    source @ KafkaError::MessageConsumption(
                        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
                    ),
                ) => return Err(Error::OffsetGone { topic: self.config.kafka.deltas.clone(), source }),
                Err(source @ KafkaError::MessageConsumptionFatal(_)) => {
                    return Err(Error::Kafka { what: "consume", source });
                }
                // Brokers come and go; librdkafka connects again by itself.
                Err(error) => tracing::warn!(%error, "consume"),
            }
        }
        Ok(())
    }

    fn hand_over_held(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let mut resumed = Vec::new();
        for (partition, lane) in &mut self.lanes {
            let Some(message) = lane.held.take() else { continue };
            match lane.batches.try_send(message) {
                Ok(()) => resumed.push((*partition, 0)),
                Err(TrySendError::Full(message) | TrySendError::Closed(message)) => lane.held = Some(message),
            }
        }
        if resumed.is_empty() {
            return Ok(());
        }
        consumer.resume(&self.list(resumed)?).map_err(Error::kafka("resume a partition"))
    }

    /// Starts again the tasks that found the store elsewhere, and stops the partitions that are broken.
    fn look_after_tasks(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let ended: Vec<i32> =
            self.lanes.iter().filter(|(_, lane)| lane.task.is_finished()).map(|(p, _)| *p).collect();
        for partition in ended {
            let lane = self.lanes.remove(&partition).expect("it was just there");
            let end = self
                .runtime
                .block_on(lane.task)
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            let one = self.list([(partition, 0)])?;
            match end {
                End::Released => unreachable!("a lane's sender lives as long as the lane"),
                End::Rewind => {
                    tracing::warn!(partition, "start again at the ledger's position");
                    consumer.incremental_unassign(&one).map_err(Error::kafka("stop reading"))?;
                    self.start(consumer, &[(partition, lane.attempt + 1)])?;
                }
                End::Broken(broken) => {
                    self.note_broken(partition, &broken);
                    consumer.pause(&one).map_err(Error::kafka("pause a partition"))?;
                }
            }
        }
        Ok(())
    }

    fn note_broken(&mut self, partition: i32, broken: &Broken) {
        tracing::error!(partition, error = %broken, "the partition stops; the others go on");
        self.broken.insert(partition);
        self.whole.set(false, format!("partitions {:?} stopped; the last one: {broken}", self.broken));
    }

    fn carry_out_decisions(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        while let Some(decision) = consumer.context().next_decision() {
            match decision {
                Rebalance::Assign(partitions) => {
                    let fresh: Vec<(i32, u32)> =
                        partitions.into_iter().map(|partition| (partition, 0)).collect();
                    self.start(consumer, &fresh)?;
                    self.assigned.set(true, "");
                }
                Rebalance::Revoke(partitions) => {
                    self.release(&partitions);
                    let released = self.list(partitions.into_iter().map(|partition| (partition, 0)))?;
                    consumer.incremental_unassign(&released).map_err(Error::kafka("let partitions go"))?;
                }
            }
            tracing::info!(partitions = ?self.lanes.keys().collect::<Vec<_>>(), "assignment changed");
        }
        Ok(())
    }

    /// Starts partitions at the ledger's positions; a broken one is taken on, but not read.
    fn start(&mut self, consumer: &BaseConsumer<Membership>, partitions: &[(i32, u32)]) -> Result<(), Error> {
        let Some(ledgers) = self.ledgers() else { return Ok(()) };
        let mut from = Vec::new();
        for &(partition, attempt) in partitions {
            match Stored::of(ledgers.get(&partition)) {
                Ok(stored) => {
                    from.push((partition, stored.deltas));
                    self.lanes.insert(partition, self.lane(partition, stored, attempt));
                }
                Err(error) => {
                    from.push((partition, 0));
                    self.note_broken(partition, &Broken::Ledger(error));
                }
            }
        }
        consumer
            .incremental_assign(&self.list(from.iter().copied())?)
            .map_err(Error::kafka("start reading"))?;
        // librdkafka remembers a pause from an earlier assignment.
        let (whole, broken): (Vec<_>, Vec<_>) = from.iter().partition(|(p, _)| self.lanes.contains_key(p));
        consumer.resume(&self.list(whole)?).map_err(Error::kafka("start reading"))?;
        consumer.pause(&self.list(broken)?).map_err(Error::kafka("pause a partition"))
    }

    /// The ledgers; waits for a store that is away, unless the sink is to stop.
    fn ledgers(&self) -> Option<BTreeMap<i32, Ledger>> {
        while !self.stop.is_cancelled() {
            self.heartbeat.beat();
            match self.runtime.block_on(store::ledgers(&self.client, false)) {
                Ok(ledgers) => return Some(ledgers),
                Err(error) => tracing::warn!(%error, "wait for the store's ledger"),
            }
            self.runtime.block_on(async {
                tokio::select! { () = self.stop.cancelled() => {}, () = tokio::time::sleep(LEDGER_RETRY) => {} }
            });
        }
        None
    }

    fn lane(&self, partition: i32, stored: Stored, attempt: u32) -> Lane {
        let (batches, inbox) = mpsc::channel(self.config.sink.queued_batches);
        let (told, position) = watch::channel(stored.deltas);
        let task = Partition {
            client: self.client.clone(),
            topic_id: self.topic_id.clone(),
            partition,
            stored,
            attempt,
            metrics: self.metrics.clone(),
        };
        let task = self.runtime.spawn(task.run(inbox, told));
        Lane { task, batches, held: None, position, committed: -1, attempt }
    }

    /// Ends the partitions' tasks: what they hold may still go in, for a while; the rest is left to the next owner.
    fn release(&mut self, partitions: &[i32]) {
        let mut tasks = Vec::new();
        for partition in partitions {
            self.broken.remove(partition);
            if let Some(lane) = self.lanes.remove(partition) {
                drop(lane.batches);
                tasks.push(lane.task);
            }
        }
        self.whole.set(self.broken.is_empty(), format!("partitions {:?} stopped", self.broken));
        self.runtime.block_on(async {
            let deadline = tokio::time::Instant::now() + RELEASE;
            for mut task in tasks {
                if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                    task.abort();
                }
            }
        });
    }

    /// Tells Kafka how far the store is: for dashboards of lag, and nothing else.
    fn commit(&mut self, consumer: &BaseConsumer<Membership>, mode: CommitMode) -> Result<(), Error> {
        let mut moved = Vec::new();
        for (partition, lane) in &mut self.lanes {
            let position = *lane.position.borrow();
            if position > 0 && position != lane.committed {
                lane.committed = position;
                moved.push((*partition, position));
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        if let Err(error) = consumer.commit(&self.list(moved)?, mode) {
            tracing::debug!(%error, "commit offsets for dashboards");
        }
        Ok(())
    }

    fn leave(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        self.assigned.set(false, "stopping");
        self.carry_out_decisions(consumer)?;
        let all: Vec<i32> = self.lanes.keys().copied().collect();
        self.release(&all);
        consumer.context().leave();
        tracing::info!("sink drained");
        Ok(())
    }
}
