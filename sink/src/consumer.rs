//! The sink's member of the group: fetches batches, and hands them to the partitions' tasks, each
//! of which starts at the ledger's position.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clickhouse::Client;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_kafka::{Fetcher, Membership, Rebalance};
use tally_platform::config::Config;
use tally_platform::health::{Condition, Health, Heartbeat};
use tally_platform::retry::until_brokers_answer;
use tally_platform::store;
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

const NAME: &str = "tally-sink";
/// The longest wait where there is nothing to do: tasks have a batch or two in store meanwhile.
const IDLE: Duration = Duration::from_millis(10);
/// A partition of which so much waits inside librdkafka is not fetched on.
const QUEUED_KBYTES: &str = "4096";
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
    let consumer: BaseConsumer<Membership> =
        tally_kafka::consumer(&config.kafka.cluster(), NAME, &config.sink.group)
            .set("session.timeout.ms", config.sink.session_timeout_ms.to_string())
            .set("queued.max.messages.kbytes", QUEUED_KBYTES)
            .create_with_context(Membership::default())
            .map_err(Error::kafka("make a consumer"))?;
    let consumer = Arc::new(consumer);
    let Some(topic_id) = until_brokers_answer(stop, || {
        heartbeat.beat();
        tally_kafka::topic_id(consumer.client(), &config.kafka.deltas)
    })?
    else {
        return Ok(());
    };
    let client = store::client(&config.store);
    let deltas = &config.kafka.deltas;
    let fetcher = Fetcher::new(
        &config.kafka.cluster(),
        config.sink.fetch,
        &consumer,
        deltas,
        &topic_id,
        NAME,
        runtime,
    );
    let sink = Sink {
        config,
        consumer: Arc::clone(&consumer),
        fetcher,
        endpoint: Endpoint::new(&config.store)?,
        check: Check::new(client.clone()),
        client,
        topic_id,
        lanes: BTreeMap::new(),
        broken: BTreeSet::new(),
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
    consumer.subscribe(&[deltas]).map_err(Error::kafka("subscribe"))?;
    tracing::info!(topic_id = sink.topic_id, "sink started");
    let ended = sink.run();
    // However it ended: nobody carries out decisions any more, and closing the consumer waits for
    // that.
    consumer.context().leave();
    ended
}

pub(crate) struct Sink<'c> {
    pub(crate) config: &'c Config,
    pub(crate) consumer: Arc<BaseConsumer<Membership>>,
    pub(crate) fetcher: Fetcher,
    pub(crate) client: Client,
    pub(crate) endpoint: Endpoint,
    pub(crate) check: Check,
    pub(crate) topic_id: String,
    pub(crate) lanes: BTreeMap<i32, Lane>,
    pub(crate) broken: BTreeSet<i32>,
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
    /// Whether the store is proven fit; waits for one that is away, and gives up only when the sink
    /// is to stop.
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

    fn run(mut self) -> Result<(), Error> {
        let ended = self.work();
        self.assigned.set(false, "stopping");
        let all: Vec<i32> = self.lanes.keys().copied().collect();
        self.release(&all);
        if ended.is_ok() {
            tracing::info!("sink drained");
        }
        ended
    }

    fn work(&mut self) -> Result<(), Error> {
        let mut next_commit = Instant::now() + COMMIT_INTERVAL;
        let mut wait = Duration::ZERO;
        while !self.stop.is_cancelled() {
            self.heartbeat.beat();
            self.serve(wait)?;
            self.carry_out_decisions()?;
            self.look_after_tasks()?;
            self.watch_topic()?;
            self.check_ledger();
            self.resume_lanes();
            wait = if self.take_batches()? { Duration::ZERO } else { IDLE };
            if Instant::now() >= next_commit {
                self.commit()?;
                next_commit = Instant::now() + COMMIT_INTERVAL;
            }
        }
        self.carry_out_decisions()
    }

    /// Serves the group and the client's errors, for up to `wait`.
    fn serve(&self, wait: Duration) -> Result<(), Error> {
        match self.consumer.poll(wait) {
            None => {}
            // It came out here and not by fetching: what came after it may be fetched already.
            Some(Ok(stray)) => {
                if let Some(lane) = self.lanes.get(&stray.partition()) {
                    lane.halt();
                }
            }
            Some(Err(source @ KafkaError::MessageConsumptionFatal(_))) => {
                return Err(Error::Kafka { what: "consume", source });
            }
            Some(Err(
                error @ KafkaError::MessageConsumption(
                    RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopicId,
                ),
            )) => {
                tracing::warn!(%error, "consume");
                self.check_topic()?;
            }
            // Brokers come and go; librdkafka connects again by itself.
            Some(Err(error)) => tracing::warn!(%error, "consume"),
        }
        Ok(())
    }

    /// Hands over what was fetched; `false` if that was nothing.
    fn take_batches(&mut self) -> Result<bool, Error> {
        let mut any = false;
        while let Some(fetched) = self.fetcher.fetch_to_keep() {
            any = true;
            match fetched {
                Ok(batch) => {
                    let partition = batch.partition;
                    let Some(lane) = self.lanes.get_mut(&partition) else { continue };
                    match lane.batches.try_send(batch) {
                        Ok(()) => {}
                        // Its task has ended, and is looked after.
                        Err(TrySendError::Closed(_)) => continue,
                        Err(TrySendError::Full(_)) => {
                            unreachable!("a full lane's partition is paused")
                        }
                    }
                    if lane.batches.capacity() == 0 {
                        lane.is_full = true;
                        self.fetcher.pause(partition);
                    }
                }
                Err(unreadable) => self.judge_unreadable(unreadable)?,
            }
        }
        Ok(any)
    }

    fn resume_lanes(&mut self) {
        for (partition, lane) in &mut self.lanes {
            if lane.is_full && lane.batches.capacity() > 0 {
                lane.is_full = false;
                self.fetcher.resume(*partition);
            }
        }
    }

    fn carry_out_decisions(&mut self) -> Result<(), Error> {
        while let Some(decision) = self.consumer.context().next_decision() {
            match decision {
                Rebalance::Assign(partitions) => {
                    self.check_topic()?;
                    tally_kafka::take_on(&self.consumer)
                        .map_err(Error::kafka("take partitions on"))?;
                    let fresh: Vec<(i32, u32)> =
                        partitions.into_iter().map(|partition| (partition, 0)).collect();
                    self.start(&fresh)?;
                    self.assigned.set(true, "");
                }
                Rebalance::Revoke(partitions) => {
                    self.release(&partitions);
                    tally_kafka::let_go(&self.consumer, &self.config.kafka.deltas, &partitions)
                        .map_err(Error::kafka("let partitions go"))?;
                }
            }
            tracing::info!(partitions = ?self.lanes.keys().collect::<Vec<_>>(), "assignment changed");
        }
        Ok(())
    }

    /// Tells Kafka how far the store is: for dashboards of lag, and nothing else.
    fn commit(&mut self) -> Result<(), Error> {
        let mut moved = TopicPartitionList::new();
        for (partition, lane) in &mut self.lanes {
            let position = *lane.position.borrow();
            if position > 0 && position != lane.committed {
                lane.committed = position;
                moved
                    .add_partition_offset(
                        &self.config.kafka.deltas,
                        *partition,
                        Offset::Offset(position),
                    )
                    .map_err(Error::kafka("list partitions"))?;
            }
        }
        if moved.count() == 0 {
            return Ok(());
        }
        if let Err(error) = self.consumer.commit(&moved, CommitMode::Async) {
            tracing::debug!(%error, "commit offsets for dashboards");
        }
        Ok(())
    }
}
