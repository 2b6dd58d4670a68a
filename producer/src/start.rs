//! What must be known before the first increment is taken, and whether the log can be reached.
//!
//! A registry or a broker that is down is asked again until it answers. Meanwhile the gateway
//! listens, says that it is not ready, and takes nothing.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tally_kafka::TopicError;
use tally_platform::config::Config;
use tally_platform::health::{Condition, Health};
use tally_platform::registry::{self, Registry};
use tally_schemas::avsc;
use tokio_util::sync::CancellationToken;

use crate::log::Log;
use crate::message::SchemaIds;

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often the log is looked at once the gateway has started.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// What is known once the gateway has started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) schema_ids: SchemaIds,
    /// What the topic takes; unknown where the broker does not tell, and then it judges each
    /// message itself.
    pub(crate) max_message_bytes: Option<usize>,
}

/// Readiness, condition by condition.
pub(crate) struct Readiness {
    schemas: Condition,
    log: Condition,
}

impl Readiness {
    pub(crate) fn new(health: &Health) -> Readiness {
        Readiness { schemas: health.condition("schemas"), log: health.condition("log") }
    }
}

/// Gathers what must be known; `None` if `shutdown` comes first.
pub(crate) async fn start(
    config: &Config,
    registry: &Registry,
    log: &Arc<Log>,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) -> Option<Started> {
    let schemas = insist("schemas", &readiness.schemas, shutdown, || register(config, registry));
    let topic = insist("log", &readiness.log, shutdown, || check(log));
    let (schema_ids, topic) = tokio::join!(schemas, topic);
    let (schema_ids, ()) = (schema_ids?, topic?);
    let max_message_bytes = match log.max_message_bytes().await {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tracing::warn!(%error, "messages are not measured before they are sent");
            None
        }
    };
    tracing::info!(?schema_ids, ?max_message_bytes, "ready");
    Some(Started { schema_ids, max_message_bytes })
}

/// Looks at the log from time to time, until `shutdown`.
pub(crate) async fn watch(log: &Arc<Log>, readiness: &Readiness, shutdown: &CancellationToken) {
    let mut was_reachable = true;
    while shutdown.run_until_cancelled(tokio::time::sleep(WATCH_INTERVAL)).await.is_some() {
        let Some(checked) = shutdown.run_until_cancelled(check(log)).await else {
            return;
        };
        let is_reachable = checked.is_ok();
        match checked {
            Ok(()) => {
                readiness.log.set(true, "");
                if !was_reachable {
                    tracing::info!("the log answers again");
                }
            }
            Err(error) => {
                if was_reachable {
                    tracing::warn!(%error, "the log does not answer");
                }
                readiness.log.set(false, error.to_string());
            }
        }
        was_reachable = is_reachable;
    }
}

async fn register(config: &Config, registry: &Registry) -> Result<SchemaIds, registry::Error> {
    let subject = format!("{}-value", config.kafka.increments);
    let increment = registry.register(&subject, avsc::INCREMENT).await?;
    let batch = registry.register(avsc::INCREMENT_BATCH_SUBJECT, avsc::INCREMENT_BATCH).await?;
    Ok(SchemaIds { increment, batch })
}

async fn check(log: &Arc<Log>) -> Result<(), TopicError> {
    let log = Arc::clone(log);
    tokio::task::spawn_blocking(move || log.check())
        .await
        .expect("looking at the log does not panic")
}

/// Calls until it succeeds, waiting twice as long each time; `None` if `shutdown` comes first.
async fn insist<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &'static str,
    condition: &Condition,
    shutdown: &CancellationToken,
    call: impl Fn() -> F,
) -> Option<T> {
    let mut wait = FIRST_WAIT;
    loop {
        match shutdown.run_until_cancelled(call()).await? {
            Ok(value) => {
                condition.set(true, "");
                return Some(value);
            }
            Err(error) => {
                tracing::warn!(%error, ?wait, "waiting for the {what}");
                condition.set(false, error.to_string());
            }
        }
        shutdown.run_until_cancelled(tokio::time::sleep(wait)).await?;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}
