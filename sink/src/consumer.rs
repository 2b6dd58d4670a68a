//! The consumer's loop: a member of the group that fetches batches and queues them for the
//! partitions' inserters, each of which starts at the ledger's position.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clickhouse::Client;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_kafka::{Fetcher, Membership, Rebalance, Unreadable};
use tally_platform::closing;
use tally_platform::config::Config;
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::health::{Condition, Health};
use tally_platform::partition_metrics::PartitionMetrics;
use tally_platform::progress_watch::ProgressWatch;
use tally_platform::retry;
use tally_platform::store::{self, UnknownPartitions};
use tally_platform::strangers::{Group, Strangers};
use tally_platform::unserved::UnservedPartitions;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::consumer_thread::ConsumerThread;
use crate::endpoint::Endpoint;
use crate::inserter::{InserterContext, InserterEnd};
use crate::inserters::{EndedInserter, Inserters, Queue};
use crate::ledger_watch::{Found, LedgerWatch};
use crate::metrics::Metrics;
use crate::partition_error::PartitionError;
use crate::proof;
use crate::store_health::StoreHealth;
use crate::topic_watch::TopicWatch;

const CLIENT_ID: &str = "tally-sink";
/// The longest wait where there is nothing to do: inserters have a batch or two queued meanwhile.
const IDLE: Duration = Duration::from_millis(10);
/// A partition of which so much waits inside librdkafka is not fetched on.
const QUEUED_KBYTES: &str = "4096";
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const LEDGER_RETRY: Duration = Duration::from_secs(1);
/// Before a partition is read again that could not be read.
const UNREADABLE_RETRY: Duration = Duration::from_millis(500);
/// The longest that a healthy loop does not come round, but while ClickHouse is away.
const MAX_SILENCE: Duration = Duration::from_secs(180);

/// The sink's topology: makes every part, and hands it to the one that owns it.
pub(crate) fn run(
    config: &Config,
    health: &Health,
    stop: &CancellationToken,
    runtime: &Handle,
    closing: &closing::Part,
) -> Result<(), Error> {
    let proven = health.condition("ClickHouse keeps its promises");
    let assigned = health.condition("partitions assigned");
    let whole = health.condition("every partition whole");
    whole.set(true, "");
    let unserved = UnservedPartitions::new(health, "sink");
    let store_health = StoreHealth::new(health.condition("ClickHouse takes blocks"));
    let progress = ProgressWatch::new(
        health.condition("partitions are stored soon"),
        "stored",
        &["storing"],
        Duration::ZERO,
    );
    let heartbeat = health.heartbeat("consumer loop", MAX_SILENCE);
    let thread = ConsumerThread { heartbeat, stop, runtime };

    let consumer = new_consumer(config)?;
    let topic = TopicWatch::begin(&consumer, &config.kafka.deltas, &thread)?;
    let Some(topic) = topic else { return Ok(()) };
    let fetcher = Fetcher::new(
        &config.kafka.cluster(),
        config.sink.fetch,
        &consumer,
        topic.topic(),
        topic.topic_id(),
        CLIENT_ID,
        runtime,
    );
    let partitions = topic.partitions(&thread)?;
    let Some(partitions) = partitions else { return Ok(()) };
    let client = store::client(&config.store);
    let endpoint = Endpoint::new(&config.store)?;
    if !proof::wait_until_proven(&config.store, &client, &endpoint, &thread, &proven)? {
        return Ok(());
    }
    let metrics = Metrics::new();
    let context = InserterContext {
        client: client.clone(),
        batches: DeltaBatches::new(&config.registry, &config.kafka.deltas)?,
        endpoint,
        topic_id: topic.topic_id().to_owned(),
        metrics: metrics.clone(),
        store_health,
    };
    let inserters = Inserters::new(context, config.sink.queued_batches, runtime.clone(), whole);
    consumer.subscribe(&[topic.topic()]).map_err(Error::kafka("subscribe"))?;
    let group = Group {
        name: config.sink.group.clone(),
        topic: topic.topic().to_owned(),
        own_prefix: CLIENT_ID.to_owned(),
    };
    let _strangers = Strangers::start(health, "sink", group, &consumer, runtime);
    tracing::info!(topic_id = topic.topic_id(), "sink started");
    let sink = Sink {
        consumer: &consumer,
        fetcher,
        ledger: LedgerWatch::new(client.clone()),
        partitions,
        unknown: UnknownPartitions::default(),
        client,
        topic,
        inserters,
        metrics,
        assigned,
        unserved,
        status: PartitionMetrics::new("sink", "stored").watched(progress),
        ends: BTreeMap::new(),
        thread,
    };
    let ended = sink.run(closing);
    // However it ended: nobody carries out decisions any more, and closing the consumer waits for
    // that.
    consumer.context().leave();
    ended
}

fn new_consumer(config: &Config) -> Result<Arc<BaseConsumer<Membership>>, Error> {
    let cluster = config.kafka.cluster();
    let consumer = tally_kafka::consumer(&cluster, CLIENT_ID, &config.sink.group)
        .set("session.timeout.ms", config.sink.session_timeout_ms.to_string())
        .set("queued.max.messages.kbytes", QUEUED_KBYTES)
        .create_with_context(Membership::default())
        .map_err(Error::kafka("make a consumer"))?;
    Ok(Arc::new(consumer))
}

struct Sink<'c> {
    consumer: &'c BaseConsumer<Membership>,
    fetcher: Fetcher,
    client: Client,
    topic: TopicWatch<'c>,
    ledger: LedgerWatch,
    /// The topic had so many when it was last asked.
    partitions: i32,
    unknown: UnknownPartitions,
    inserters: Inserters,
    metrics: Metrics,
    assigned: Condition,
    unserved: UnservedPartitions,
    status: PartitionMetrics,
    /// Where each partition's log ended when a broker last told.
    ends: BTreeMap<i32, i64>,
    thread: ConsumerThread<'c>,
}

impl Sink<'_> {
    fn run(mut self, closing: &closing::Part) -> Result<(), Error> {
        let _watch = closing.watch_for_panics();
        let ended = self.work();
        self.assigned.set(false, "stopping");
        let inserting: Vec<i32> = self.inserters.stored().into_keys().collect();
        self.release(&inserting);
        if ended.is_ok() {
            tracing::info!("sink drained");
        }
        closing.begin(&ended);
        ended
    }

    fn work(&mut self) -> Result<(), Error> {
        let mut next_commit = Instant::now() + COMMIT_INTERVAL;
        let mut wait = Duration::ZERO;
        while !self.thread.stop.is_cancelled() {
            self.thread.heartbeat.beat();
            self.poll(wait)?;
            self.carry_out_decisions()?;
            self.look_after_inserters()?;
            self.topic.look_if_due()?;
            self.check_ledger();
            self.resume_partitions();
            self.unserved.tell(|| self.fetcher.unserved());
            self.tell_status();
            wait = if self.queue_batches()? { Duration::ZERO } else { IDLE };
            if Instant::now() >= next_commit {
                self.commit()?;
                next_commit = Instant::now() + COMMIT_INTERVAL;
            }
        }
        self.carry_out_decisions()
    }

    fn tell_status(&mut self) {
        let Sink { status, ends, fetcher, inserters, .. } = self;
        status.tell(|| {
            ends.extend(fetcher.ends());
            inserters.statuses(ends, |partition| fetcher.position(partition))
        });
    }

    /// Serves the group and the client's errors, for up to `wait`.
    fn poll(&self, wait: Duration) -> Result<(), Error> {
        self.consumer.context().check()?;
        match self.consumer.poll(wait) {
            None => {}
            // The message came out here and not by fetching: what came after it may be fetched
            // already.
            Some(Ok(stray)) => self.inserters.halt(stray.partition()),
            Some(Err(source @ KafkaError::MessageConsumptionFatal(_))) => {
                return Err(Error::Kafka { what: "the Kafka client cannot go on", source });
            }
            Some(Err(
                error @ KafkaError::MessageConsumption(
                    RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopicId,
                ),
            )) => {
                tracing::warn!(%error, "Kafka does not know the topic; asking for its id");
                self.topic.look(&self.thread)?;
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "trouble with a Kafka broker; librdkafka reconnects");
            }
        }
        Ok(())
    }

    /// Queues what was fetched for the inserters; `false` if that was nothing.
    fn queue_batches(&mut self) -> Result<bool, Error> {
        let mut any = false;
        while let Some(fetched) = self.fetcher.fetch_to_keep() {
            any = true;
            match fetched {
                Ok(batch) => {
                    let partition = batch.partition;
                    if self.inserters.queue(batch) == Queue::Full {
                        self.fetcher.pause(partition);
                    }
                }
                Err(unreadable) => self.look_after_unreadable(unreadable)?,
            }
        }
        Ok(any)
    }

    fn resume_partitions(&mut self) {
        for partition in self.inserters.take_resumable() {
            self.fetcher.resume(partition);
        }
    }

    fn carry_out_decisions(&mut self) -> Result<(), Error> {
        while let Some(decision) = self.consumer.context().next_decision() {
            match decision {
                Rebalance::Assign(partitions) => {
                    self.topic.look(&self.thread)?;
                    tally_kafka::take_on(self.consumer)
                        .map_err(Error::kafka("take partitions on"))?;
                    let first_attempts: Vec<(i32, u32)> =
                        partitions.into_iter().map(|partition| (partition, 0)).collect();
                    self.start(&first_attempts)?;
                }
                Rebalance::Revoke(partitions) => {
                    self.release(&partitions);
                    tally_kafka::let_go(self.consumer, self.topic.topic(), &partitions)
                        .map_err(Error::kafka("let partitions go"))?;
                    if self.inserters.is_empty() {
                        self.assigned
                            .set(false, "the group took all of them, and has given none yet");
                    }
                }
            }
            tracing::info!(partitions = ?self.inserters.stored().keys(), "assignment changed");
        }
        Ok(())
    }

    /// Starts partitions at the ledger's positions, each with its attempt, but for those whose
    /// ledger contradicts itself. Waits for a ClickHouse that is away.
    fn start(&mut self, partitions: &[(i32, u32)]) -> Result<(), Error> {
        let read = || store::ledgers(&self.client);
        let ledgers = self.thread.until_ok(LEDGER_RETRY, read, |error| {
            tracing::warn!(%error, "the ledger in ClickHouse cannot be read; reading it again");
            let waits =
                format!("they wait for the ledger in ClickHouse, which cannot be read: {error}");
            self.assigned.set(false, waits);
        });
        let Some(ledgers) = ledgers else { return Ok(()) };
        let mut positions = Vec::new();
        for &(partition, attempt) in partitions {
            let ledger = ledgers.get(&partition).copied().unwrap_or_default();
            match ledger.stored_offsets() {
                Ok(stored) => {
                    positions.push((partition, stored.deltas));
                    self.inserters.start(partition, stored, attempt);
                }
                Err(error) => self.stop(partition, &error.into()),
            }
        }
        self.fetcher.start(&positions).map_err(Error::kafka("start reading"))?;
        self.assigned.set(true, "");
        Ok(())
    }

    fn stop(&mut self, partition: i32, error: &PartitionError) {
        self.inserters.stop(partition, error);
        self.fetcher.stop(partition);
    }

    fn release(&mut self, partitions: &[i32]) {
        partitions.iter().for_each(|partition| self.fetcher.stop(*partition));
        self.inserters.release(partitions);
    }

    /// Starts partitions again whose inserters have ended, but for those that no retry mends.
    fn look_after_inserters(&mut self) -> Result<(), Error> {
        for EndedInserter { partition, attempt, end } in self.inserters.take_ended() {
            match end {
                InserterEnd::Restart | InserterEnd::Halted => {
                    tracing::warn!(
                        partition,
                        "starting the partition again at the ledger's position"
                    );
                    self.metrics.rewound();
                    self.fetcher.stop(partition);
                    self.start(&[(partition, attempt + 1)])?;
                }
                InserterEnd::Stop(error) => self.stop(partition, &error),
            }
        }
        Ok(())
    }

    fn look_after_unreadable(&mut self, unreadable: Unreadable) -> Result<(), Error> {
        self.topic.look(&self.thread)?;
        let partition = unreadable.partition;
        if !self.inserters.is_inserting(partition) {
            return Ok(());
        }
        match self.topic.reason_to_stop(unreadable) {
            Some(error) => self.stop(partition, &error),
            None => {
                self.inserters.halt(partition);
                retry::pause(self.thread.stop, UNREADABLE_RETRY);
            }
        }
        Ok(())
    }

    /// Has the partitions started again whose blocks the ledger does not know any more.
    fn check_ledger(&mut self) {
        let stored = || self.inserters.stored();
        let found = self.ledger.poll(self.thread.runtime, self.partitions, stored);
        let Some(Found { behind, unknown }) = found else { return };
        // Where Kafka does not tell how many partitions it has by now, another look will.
        if self.unknown.is_news(&unknown)
            && let Ok(partitions) = self.topic.partitions_now()
        {
            self.partitions = partitions;
            self.unknown.tell(unknown, partitions);
        }
        for partition in behind {
            if self.inserters.is_inserting(partition) {
                tracing::warn!(
                    partition,
                    "ClickHouse has lost blocks that it had; storing them again from Kafka"
                );
                self.inserters.halt(partition);
            }
        }
    }

    /// Tells Kafka how far partitions are stored: for dashboards of lag, and nothing else.
    fn commit(&mut self) -> Result<(), Error> {
        let mut moved = TopicPartitionList::new();
        for (partition, stored) in
            self.inserters.take_moved(|partition| self.fetcher.position(partition))
        {
            moved
                .add_partition_offset(self.topic.topic(), partition, Offset::Offset(stored))
                .map_err(Error::kafka("list partitions"))?;
        }
        if moved.count() == 0 {
            return Ok(());
        }
        if let Err(error) = self.consumer.commit(&moved, CommitMode::Async) {
            tracing::debug!(%error, "Kafka did not take the offsets, which only dashboards need");
        }
        Ok(())
    }
}
