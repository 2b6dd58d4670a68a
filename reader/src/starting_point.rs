//! What must be known before the first read is answered: where the store is, and that the log goes
//! on from there.
//!
//! A broker or a store that is down is asked again until it answers. Meanwhile the reader listens
//! and says that it is not ready.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_counts::StoredOffsets;
use tally_kafka::{ErrorsByPoll, TopicError, partition_count, watermarks};
use tally_platform::config::Config;
use tally_platform::health::Condition;
use tally_platform::retry::{Backoff, until_ok};
use tally_platform::store::{self, SupportError};
use tokio_util::sync::CancellationToken;

use crate::counter_memory::Broken;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};
use crate::vector::{Vector, number};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Where the reader begins, in ClickHouse and on `deltas`.
pub(crate) struct StartingPoint {
    pub(crate) store: Store,
    /// How far the store is.
    pub(crate) vector: Vector,
    /// The offset of `deltas` to read each partition from, or why what the log has of it cannot be
    /// what comes next.
    pub(crate) offsets: Vec<Result<i64, Broken>>,
}

#[derive(Debug, thiserror::Error)]
enum StartingPointError {
    #[error(transparent)]
    Log(#[from] TopicError),
    #[error(transparent)]
    Support(#[from] SupportError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("ClickHouse has counts of {stored} partitions, but {topic} has {partitions} in Kafka")]
    Partitions { stored: usize, topic: String, partitions: usize },
}

/// Asks until both answer; `None` if `stop` comes first.
pub(crate) async fn starting_point(
    config: &Config,
    consumer: &Arc<BaseConsumer<ErrorsByPoll>>,
    metrics: &Metrics,
    condition: &Condition,
    stop: &CancellationToken,
) -> Option<StartingPoint> {
    let backoff = Backoff::doubling(FIRST_WAIT, LONGEST_WAIT);
    let call = || try_starting_point(config, consumer, metrics);
    let failed = |error: StartingPointError, wait| {
        tracing::warn!(%error, ?wait, "waiting for Kafka and ClickHouse; asking again");
        condition.set(false, error.to_string());
    };
    until_ok(stop, backoff, call, failed).await
}

async fn try_starting_point(
    config: &Config,
    consumer: &Arc<BaseConsumer<ErrorsByPoll>>,
    metrics: &Metrics,
) -> Result<StartingPoint, StartingPointError> {
    let topic = &config.kafka.deltas;
    let partitions = partitions(consumer, topic).await?;
    store::check_support(&config.store).await?;
    let store = Store::new(store::client(&config.store), metrics.clone());
    // The store first: the log can only be further.
    let mut vector = store.vector(partitions).await?;
    if vector.partitions() > partitions {
        let (stored, topic) = (vector.partitions(), topic.clone());
        return Err(StartingPointError::Partitions { stored, topic, partitions });
    }
    vector.grow(partitions);
    let bounds = bounds(consumer, topic, 0..partitions).await;
    let offsets = vector.iter().zip(bounds).map(|((partition, place), bounds)| {
        Ok::<_, TopicError>(first_offset(partition, place, bounds?))
    });
    let offsets = offsets.collect::<Result<_, _>>()?;
    Ok(StartingPoint { store, offsets, vector })
}

/// The offset of `deltas` to read a partition from where everything before `place` is included
/// already, and Kafka has the offsets from `low` up to `high`; or why what Kafka has cannot be what
/// comes next.
pub(crate) fn first_offset(
    partition: usize,
    place: StoredOffsets,
    (low, high): (i64, i64),
) -> Result<i64, Broken> {
    let next = place.deltas;
    // Nothing stored yet, and the beginning of the log gone; or another log than the one that was
    // stored.
    if (next == 0 && low > 0) || high < next {
        return Err(Broken::Log { partition: number(partition), next, low, high });
    }
    // If batches are missing between the two, the first one read will not follow.
    Ok(next.max(low))
}

/// How many partitions the topic has.
pub(crate) async fn partitions(
    consumer: &Arc<BaseConsumer<ErrorsByPoll>>,
    topic: &str,
) -> Result<usize, TopicError> {
    let topic = topic.to_owned();
    let partitions =
        ask(consumer, move |consumer| partition_count(consumer.client(), &topic)).await?;
    Ok(usize::try_from(partitions).expect("a topic has partitions"))
}

/// The first and the next offset of each of these partitions. One whose broker does not answer
/// keeps nobody from knowing the others'.
pub(crate) async fn bounds(
    consumer: &Arc<BaseConsumer<ErrorsByPoll>>,
    topic: &str,
    partitions: Range<usize>,
) -> Vec<Result<(i64, i64), TopicError>> {
    let topic = topic.to_owned();
    let of_each = move |consumer: &BaseConsumer<ErrorsByPoll>| {
        partitions
            .map(|partition| watermarks(consumer.client(), &topic, number(partition)))
            .collect()
    };
    ask(consumer, of_each).await
}

/// The log's client blocks.
async fn ask<T: Send + 'static>(
    consumer: &Arc<BaseConsumer<ErrorsByPoll>>,
    question: impl FnOnce(&BaseConsumer<ErrorsByPoll>) -> T + Send + 'static,
) -> T {
    let consumer = Arc::clone(consumer);
    let asked = tokio::task::spawn_blocking(move || question(&consumer)).await;
    asked.expect("asking the log does not panic")
}
