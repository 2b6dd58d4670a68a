//! What must be known before the first increment is taken, and whether the log can be reached.
//!
//! A registry or a broker that is down is asked again until it answers. Meanwhile the gateway
//! listens, says that it is not ready, and takes nothing.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tally_kafka::TopicError;
use tally_platform::config::Config;
use tally_platform::health::{Condition, Health};
use tally_platform::quiet_log::QuietLog;
use tally_platform::registry::{self, Registry};
use tally_platform::retry::{Backoff, until_ok};
use tally_schemas::avsc;
use tokio_util::sync::CancellationToken;

use crate::kafka_log::KafkaLog;
use crate::message::SchemaIds;

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often the log is looked at once the gateway has started.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// What must be known before the first increment is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prerequisites {
    pub(crate) schema_ids: SchemaIds,
    /// What the topic takes; unknown where the broker does not tell, and then it judges each
    /// message itself.
    pub(crate) max_message_bytes: Option<usize>,
}

/// Readiness, condition by condition.
pub(crate) struct Readiness {
    schemas: Condition,
    log: Condition,
    /// All that must be known first is, and requests are let in.
    start: Condition,
}

impl Readiness {
    pub(crate) fn new(health: &Health) -> Readiness {
        Readiness {
            schemas: health.condition("schemas"),
            log: health.condition("log"),
            start: health.condition("start"),
        }
    }

    pub(crate) fn started(&self) {
        self.start.set(true, "");
    }
}

/// Gathers what must be known; `None` if `shutdown` comes first.
pub(crate) async fn gather(
    config: &Config,
    registry: &Registry,
    log: &Arc<KafkaLog>,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) -> Option<Prerequisites> {
    let schemas = insist("schemas", &readiness.schemas, shutdown, || register(config, registry));
    let topic = insist("log", &readiness.log, shutdown, || check(log));
    let (schema_ids, topic) = tokio::join!(schemas, topic);
    let (schema_ids, ()) = (schema_ids?, topic?);
    let max_message_bytes = match log.max_message_bytes().await {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tracing::warn!(%error, "the topic's max.message.bytes is not known; \
                 Kafka refuses too long messages itself");
            None
        }
    };
    tracing::info!(?schema_ids, ?max_message_bytes, "ready");
    Some(Prerequisites { schema_ids, max_message_bytes })
}

/// Looks at the registry from time to time, until `shutdown`: whether it still has the schemas
/// whose ids stand before each message. `allow` is told; nobody else could read the messages.
pub(crate) async fn watch_registry(
    registry: &Registry,
    readiness: &Readiness,
    shutdown: &CancellationToken,
    allow: impl Fn(bool),
) {
    let mut quiet_log = QuietLog::once();
    while shutdown.run_until_cancelled(tokio::time::sleep(WATCH_INTERVAL)).await.is_some() {
        let Some(checked) = shutdown.run_until_cancelled(registry.check_own()).await else {
            return;
        };
        match checked {
            Ok(()) => {
                allow(true);
                readiness.schemas.set(true, "");
                if quiet_log.succeeded().is_some() {
                    tracing::info!("the schema registry has Tally's schemas again");
                }
            }
            Err(error @ registry::Error::NotOurs { .. }) => {
                allow(false);
                if quiet_log.failed(Instant::now()).is_some() {
                    tracing::error!(%error, "no increments are taken until it has them again");
                }
                readiness.schemas.set(false, error.to_string());
            }
            // The schemas are known already, so nothing waits for its answer.
            Err(error) => tracing::debug!(%error, "look for Tally's schemas"),
        }
    }
}

/// Looks at the log from time to time, until `shutdown`.
pub(crate) async fn watch(
    log: &Arc<KafkaLog>,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) {
    let mut quiet_log = QuietLog::once();
    while shutdown.run_until_cancelled(tokio::time::sleep(WATCH_INTERVAL)).await.is_some() {
        let Some(checked) = shutdown.run_until_cancelled(check(log)).await else {
            return;
        };
        match checked {
            Ok(()) => {
                readiness.log.set(true, "");
                if let Some(failures) = quiet_log.succeeded() {
                    tracing::info!(failures, "Kafka answers again");
                }
            }
            Err(error) => {
                if quiet_log.failed(Instant::now()).is_some() {
                    tracing::warn!(
                        %error,
                        "Kafka does not answer; the gateway is not ready until it does"
                    );
                }
                readiness.log.set(false, error.to_string());
            }
        }
    }
}

async fn register(config: &Config, registry: &Registry) -> Result<SchemaIds, registry::Error> {
    let subject = format!("{}-value", config.kafka.increments);
    let increment = registry.register_next(&subject, avsc::INCREMENT).await?;
    let batch = registry.register(avsc::INCREMENT_BATCH_SUBJECT, avsc::INCREMENT_BATCH).await?;
    Ok(SchemaIds { increment, batch })
}

async fn check(log: &Arc<KafkaLog>) -> Result<(), TopicError> {
    let log = Arc::clone(log);
    tokio::task::spawn_blocking(move || log.check())
        .await
        .expect("looking at the log does not panic")
}

/// Calls until it succeeds, and says meanwhile that the gateway is not ready; `None` if `shutdown`
/// comes first.
async fn insist<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &'static str,
    condition: &Condition,
    shutdown: &CancellationToken,
    call: impl FnMut() -> F,
) -> Option<T> {
    let backoff = Backoff::doubling(FIRST_WAIT, LONGEST_WAIT);
    let value = until_ok(shutdown, backoff, call, |error, wait| {
        tracing::warn!(%error, ?wait, "waiting for the {what}; asking again");
        condition.set(false, error.to_string());
    })
    .await?;
    condition.set(true, "");
    Some(value)
}
