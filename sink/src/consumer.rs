//! The sink's member of the group: hands batches to the partitions' tasks, each of which starts at the ledger's position.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use clickhouse::Client;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tally_counts::next_offset;
use tally_service::config::Config;
use tally_service::health::{Condition, Health, Heartbeat};
use tally_service::kafka::{self, Membership, Rebalance};
use tally_service::store;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::check::Check;
use crate::endpoint::Endpoint;
use crate::lanes::Lane;
use crate::metrics::Metrics;
use crate::proof;
use crate::standing::Standing;

/// The longest wait for a message, with and without one that waits for room.
const POLL: Duration = Duration::from_millis(50);
const POLL_HELD: Duration = Duration::from_millis(2);
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const PROOF_RETRY: Duration = Duration::from_secs(1);
/// The longest that a healthy loop does not come round, but while the store is away.
const MAX_SILENCE: Duration = Duration::from_secs(180);

pub(crate) fn run(
    config: &Config,
    health: &Health,
    stop: &CancellationToken,
    runtime: &Handle,
) -> Result<(), Error> {
    let proven = health.condition("store keeps its promises");
    let assigned = health.condition("partitions assigned");
    let whole = health.condition("every partition whole");
    whole.set(true, "");
    let standing = Standing::new(health.condition("store takes blocks"));
    let heartbeat = health.heartbeat("consume", MAX_SILENCE);
    let consumer: BaseConsumer<Membership> = kafka::consumer(&config.kafka, "tally-sink", &config.sink.group)
        .set("session.timeout.ms", config.sink.session_timeout_ms.to_string())
        .create_with_context(Membership::default())
        .map_err(Error::kafka("make a consumer"))?;
    let Some(topic_id) = kafka::patiently(stop, || {
        heartbeat.beat();
        kafka::topic_id(consumer.client(), &config.kafka.deltas)
    })?
    else {
        return Ok(());
    };
    let client = store::client(&config.store);
    let sink = Sink {
        config,
        endpoint: Endpoint::new(&config.store)?,
        check: Check::new(client.clone()),
        client,
        topic_id,
        lanes: BTreeMap::new(),
        broken: BTreeSet::new(),
        is_offset_gone: false,
        topic_due: Instant::now(),
        metrics: Metrics::new(),
        assigned,
        whole,
        standing,
        heartbeat,
        runtime: runtime.clone(),
        stop,
    };
    if !sink.prove(&proven)? {
        return Ok(());
    }
    consumer.subscribe(&[&config.kafka.deltas]).map_err(Error::kafka("subscribe"))?;
    tracing::info!(topic_id = sink.topic_id, "sink started");
    let ended = sink.run(&consumer);
    // However it ended: nobody carries out decisions any more, and closing the consumer waits for that.
    consumer.context().leave();
    ended
}

pub(crate) struct Sink<'c> {
    pub(crate) config: &'c Config,
    pub(crate) client: Client,
    pub(crate) endpoint: Endpoint,
    pub(crate) check: Check,
    pub(crate) topic_id: String,
    pub(crate) lanes: BTreeMap<i32, Lane>,
    pub(crate) broken: BTreeSet<i32>,
    /// Some partition's next offset was not there; which, is to be found out.
    pub(crate) is_offset_gone: bool,
    /// When to ask for the topic's id again.
    pub(crate) topic_due: Instant,
    pub(crate) metrics: Metrics,
    assigned: Condition,
    pub(crate) whole: Condition,
    pub(crate) standing: Standing,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) runtime: Handle,
    pub(crate) stop: &'c CancellationToken,
}

impl Sink<'_> {
    /// Whether the store is proven fit; waits for one that is away, and gives up only when the sink is to stop.
    fn prove(&self, proven: &Condition) -> Result<bool, Error> {
        while !self.stop.is_cancelled() {
            self.heartbeat.beat();
            let asked = self.runtime.block_on(async {
                tokio::select! {
                    asked = proof::prove(&self.client, &self.endpoint) => Some(asked),
                    () = self.stop.cancelled() => None,
                }
            });
            match asked {
                None => break,
                Some(Ok(())) => {
                    proven.set(true, "");
                    return Ok(true);
                }
                Some(Err(proof::Error::Broken { version, promise, found })) => {
                    return Err(Error::Promise { version, promise, found });
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "wait for the store");
                    proven.set(false, error.to_string());
                }
            }
            self.pause(PROOF_RETRY);
        }
        Ok(false)
    }

    /// Waits, unless the sink is to stop.
    pub(crate) fn pause(&self, wait: Duration) {
        self.runtime.block_on(async {
            tokio::select! { () = self.stop.cancelled() => {}, () = tokio::time::sleep(wait) => {} }
        });
    }

    fn run(mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let ended = self.work(consumer);
        self.assigned.set(false, "stopping");
        let all: Vec<i32> = self.lanes.keys().copied().collect();
        self.release(&all);
        if ended.is_ok() {
            tracing::info!("sink drained");
        }
        ended
    }

    fn work(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let mut next_commit = Instant::now() + COMMIT_INTERVAL;
        while !self.stop.is_cancelled() {
            self.heartbeat.beat();
            self.carry_out_decisions(consumer)?;
            self.look_after_tasks(consumer)?;
            self.watch_topic(consumer)?;
            self.look_for_gone(consumer)?;
            self.check_ledger();
            self.hand_over_held(consumer)?;
            self.take_messages(consumer)?;
            if Instant::now() >= next_commit {
                self.commit(consumer)?;
                next_commit = Instant::now() + COMMIT_INTERVAL;
            }
        }
        self.carry_out_decisions(consumer)
    }

    pub(crate) fn list(
        &self,
        partitions: impl IntoIterator<Item = (i32, i64)>,
    ) -> Result<TopicPartitionList, Error> {
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
                    lane.next = next_offset(message.offset());
                    if let Err(TrySendError::Full(message)) = lane.batches.try_send(message.detach()) {
                        lane.held = Some(message);
                        let paused = self.list([(partition, 0)])?;
                        consumer.pause(&paused).map_err(Error::kafka("pause a partition"))?;
                    }
                }
                Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
                )) => self.is_offset_gone = true,
                Err(
                    error @ KafkaError::MessageConsumption(
                        RDKafkaErrorCode::UnknownTopic
                        | RDKafkaErrorCode::UnknownTopicOrPartition
                        | RDKafkaErrorCode::UnknownTopicId,
                    ),
                ) => {
                    tracing::warn!(%error, "consume");
                    self.check_topic(consumer)?;
                }
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

    fn carry_out_decisions(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        while let Some(decision) = consumer.context().next_decision() {
            match decision {
                Rebalance::Assign(partitions) => {
                    self.check_topic(consumer)?;
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

    /// Tells Kafka how far the store is: for dashboards of lag, and nothing else.
    fn commit(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
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
        if let Err(error) = consumer.commit(&self.list(moved)?, CommitMode::Async) {
            tracing::debug!(%error, "commit offsets for dashboards");
        }
        Ok(())
    }
}
