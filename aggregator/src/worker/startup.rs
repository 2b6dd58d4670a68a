//! From a configuration to a worker that runs: waits for whatever is down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_kafka::{Fetcher, Member, Membership};
use tally_platform::closing;
use tally_platform::config::Config;
use tally_platform::health::{Condition, Health};
use tally_platform::plans::Plans;
use tally_platform::progress_watch::ProgressWatch;
use tally_platform::quiet_log::QuietLog;
use tally_platform::registry::{self, Registry};
use tally_platform::retry::{Backoff, until_brokers_answer, until_ok};
use tally_platform::strangers::{Group, Strangers};
use tally_platform::unserved::UnservedPartitions;
use tally_schemas::avsc;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::backlog::Backlog;
use super::flush_delay::FlushDelay;
use super::standstills::Standstills;
use super::{REGISTRY_RETRY, Worker};
use crate::Error;
use crate::committer::Committer;
use crate::group_consumer::GroupConsumer;
use crate::last_batches::OwnSchema;
use crate::last_epochs::LastEpochs;
use crate::locator::Locator;
use crate::message_fold::MessageFold;
use crate::metrics::Metrics;
use crate::partitions::{Limits, Partitions};
use crate::producer_rotation::ProducerRotation;
use crate::schema_asks::SchemaAsks;

/// The longest time between two turns of a healthy worker.
const MAX_SILENCE: Duration = Duration::from_secs(60);
/// The time between two log lines about a registry that does not answer.
const REMINDER: Duration = Duration::from_secs(30);

/// `looks_for_strangers`: whether this worker looks who else is in the group, for its process.
pub(crate) fn run(
    config: &Config,
    name: &str,
    looks_for_strangers: bool,
    health: &Health,
    stop: &CancellationToken,
    runtime: &Handle,
    closing: &closing::Part,
) -> Result<(), Error> {
    let ready = health.condition("partitions assigned");
    let registry = Registry::new(&config.registry)?;
    let Some(schema_id) = register(config, &registry, &ready, stop, runtime)? else {
        return Ok(());
    };
    let consumer: BaseConsumer<Membership> =
        tally_kafka::consumer(&config.kafka.cluster(), name, &config.aggregator.group)
            .set("session.timeout.ms", config.aggregator.session_timeout_ms.to_string())
            .create_with_context(Membership::default())
            .map_err(Error::kafka("make a consumer"))?;
    // The client may be used from any thread: the committer asks it for the group's metadata, the
    // positions' thread for offsets. Only this thread polls it.
    let consumer = Arc::new(consumer);
    let increments = &config.kafka.increments;
    let id = || tally_kafka::topic_id(consumer.client(), increments);
    let Some(topic_id) = until_brokers_answer(stop, id)? else { return Ok(()) };
    if !has_partitions(config, &consumer, stop)? {
        return Ok(());
    }
    let member = Arc::clone(&consumer);
    let group =
        Box::new(move |held_as: Option<&Member>| tally_kafka::group_metadata(&member, held_as?));
    let Some(rotation) = ProducerRotation::new(&config.kafka, name, group, stop)? else {
        return Ok(());
    };
    let committer = Committer::start(rotation);
    let own_schema = OwnSchema { registry: registry.clone(), id: schema_id };
    let locator = Locator::start(config, own_schema, &consumer, &topic_id, runtime)?;
    let fetch = config.aggregator.fetch;
    let fetcher = Fetcher::new(
        &config.kafka.cluster(),
        fetch,
        &consumer,
        increments,
        &topic_id,
        name,
        runtime,
    );
    // The heartbeat is declared here, because all that is above may wait for long.
    let heartbeat = health.heartbeat("fold", MAX_SILENCE);
    consumer.subscribe(&[&config.kafka.increments]).map_err(Error::kafka("subscribe"))?;
    let _strangers = looks_for_strangers.then(|| {
        let group = &config.aggregator.group;
        let own_prefix = format!("{group}-");
        let group = Group { name: group.clone(), topic: increments.clone(), own_prefix };
        Strangers::start(health, "aggregator", group, &consumer, runtime)
    });
    tracing::info!(name, topic_id, "worker started");
    let limits = Limits {
        interval: config.aggregator.flush_interval(),
        batch_bytes: config.aggregator.flush_batch_bytes,
        total_bytes: config.aggregator.flush_total_bytes,
        gone_after: config.aggregator.schema_gone_after(),
    };
    let metrics = Metrics::new();
    let none = health.condition("no partition stands still");
    let standstills = Standstills::new(none, metrics.clone());
    let unserved = UnservedPartitions::new(health, "aggregator");
    let progress = ProgressWatch::new(
        health.condition("partitions are counted soon"),
        "counted",
        &["locating", "restoring", "parked", "counting"],
        limits.interval,
    );
    let worker = Worker {
        schema_id,
        committer,
        consumer: GroupConsumer::new(&consumer, fetcher, increments, &topic_id, locator),
        topic_id,
        partitions: Partitions::new(config.rules(), limits),
        epochs: LastEpochs::default(),
        schemas: SchemaAsks::new(registry.clone(), runtime.clone()),
        messages: MessageFold::new(Plans::new(registry)),
        pending: None,
        metrics,
        ready,
        commits: FlushDelay::new(health.condition("flushes commit")),
        standstills,
        unserved,
        backlog: Backlog::new(progress),
        heartbeat,
    };
    worker.run(stop, closing)
}

/// The id of the delta batches' schema, or `None` if `stop` comes first. Waits for a registry that
/// is down, was not set up yet, or has lost its data; one that refuses the schema is an error.
fn register(
    config: &Config,
    registry: &Registry,
    ready: &Condition,
    stop: &CancellationToken,
    runtime: &Handle,
) -> Result<Option<u32>, Error> {
    let subject = format!("{}-value", config.kafka.deltas);
    let ask = || async {
        match registry.register_next(&subject, avsc::DELTA_BATCH).await {
            Err(no @ registry::Error::Refused { .. }) => Ok(Err(no)),
            answer => answer.map(Ok),
        }
    };
    let mut log = QuietLog::every(REMINDER);
    let answer = until_ok(stop, Backoff::constant(REGISTRY_RETRY), ask, |error, _| {
        ready.set(false, error.to_string());
        if log.failed(Instant::now()).is_some() {
            tracing::warn!(%error, subject, "wait for the schema registry; asking it again");
        }
    });
    Ok(runtime.block_on(answer).transpose()?)
}

/// Whether `deltas` is known to have a partition for each of `increments`; `false` if `stop` comes
/// before there is an answer, an error if it has too few.
fn has_partitions(
    config: &Config,
    consumer: &BaseConsumer<Membership>,
    stop: &CancellationToken,
) -> Result<bool, Error> {
    let count = |topic| {
        until_brokers_answer(stop, || tally_kafka::partition_count(consumer.client(), topic))
    };
    let Some(need) = count(&config.kafka.increments)? else { return Ok(false) };
    let Some(have) = count(&config.kafka.deltas)? else { return Ok(false) };
    if have >= need {
        return Ok(true);
    }
    let (deltas, increments) = (config.kafka.deltas.clone(), config.kafka.increments.clone());
    Err(Error::TooFewPartitions { deltas, have, increments, need })
}
