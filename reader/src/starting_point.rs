//! What must be known before the first read is answered: where the store is, and that the log goes
//! on from there.
//!
//! A broker or a store that is down is asked again until it answers. Meanwhile the reader listens
//! and says that it is not ready.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_kafka::{TopicError, partition_count, watermarks};
use tally_platform::config::Config;
use tally_platform::health::Condition;
use tally_platform::retry::{Backoff, until_ok};
use tally_platform::store;
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
    /// The offsets of `deltas` to read from, or why what the log has cannot be what comes next.
    pub(crate) offsets: Result<Vec<i64>, Broken>,
}

#[derive(Debug, thiserror::Error)]
enum StartingPointError {
    #[error(transparent)]
    Log(#[from] TopicError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Asks until both answer; `None` if `stop` comes first.
pub(crate) async fn starting_point(
    config: &Config,
    consumer: &Arc<BaseConsumer>,
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
    consumer: &Arc<BaseConsumer>,
    metrics: &Metrics,
) -> Result<StartingPoint, StartingPointError> {
    let topic = config.kafka.deltas.clone();
    let partitions =
        ask(consumer, move |consumer| partition_count(consumer.client(), &topic)).await?;
    let partitions = usize::try_from(partitions).expect("a topic has partitions");
    let store = Store::new(store::client(&config.store), partitions, metrics.clone());
    // The store first: the log can only be further.
    let vector = store.vector().await?;
    let bounds = bounds(consumer, &config.kafka.deltas, partitions).await?;
    let offsets = vector.iter().zip(bounds).map(|((partition, place), (low, high))| {
        let stored = place.deltas;
        // Nothing stored yet, and the beginning of the log gone; or another log than the one that
        // was stored.
        if (stored == 0 && low > 0) || high < stored {
            return Err(Broken::Log { partition: number(partition), stored, low, high });
        }
        // If batches are missing between the two, the first one read will not follow.
        Ok(stored.max(low))
    });
    Ok(StartingPoint { store, offsets: offsets.collect(), vector })
}

/// The first and the next offset of each partition.
pub(crate) async fn bounds(
    consumer: &Arc<BaseConsumer>,
    topic: &str,
    partitions: usize,
) -> Result<Vec<(i64, i64)>, TopicError> {
    let topic = topic.to_owned();
    let of_each = move |consumer: &BaseConsumer| {
        (0..partitions)
            .map(|partition| watermarks(consumer.client(), &topic, number(partition)))
            .collect()
    };
    ask(consumer, of_each).await
}

/// The log's client blocks.
async fn ask<T: Send + 'static>(
    consumer: &Arc<BaseConsumer>,
    question: impl FnOnce(&BaseConsumer) -> Result<T, TopicError> + Send + 'static,
) -> Result<T, TopicError> {
    let consumer = Arc::clone(consumer);
    let asked = tokio::task::spawn_blocking(move || question(&consumer)).await;
    asked.expect("asking the log does not panic")
}
