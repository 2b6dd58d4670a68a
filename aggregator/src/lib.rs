//! The aggregator: folds increments into deltas, and commits each flush together with the offsets
//! that it covers.
//!
//! ```text
//!                  locator (a thread): where each partition is read from
//!                     ▼
//!            ┌─────── worker (a thread, a member of the group) ─────────────┐
//! increments │ GroupConsumer ─► MessageFold ─► Partitions (a state of each) │
//!  ─────────►│                                    │ flush                   │
//!            │                                    ▼                         │  deltas,
//!            │             committer (a thread): one transaction a flush ───┼─► rejected messages,
//!            └──────────────────────────────────────────────────────────────┘  the group's offsets
//! ```
//!
//! While one flush commits, the next one's sums accumulate. When a flush does not commit, whatever
//! the reason, every sum is dropped and the partitions are read again from the committed offsets:
//! nothing is ever mended in memory.

mod committer;
mod error;
mod group_consumer;
mod last_batches;
mod last_epochs;
mod locator;
mod message_fold;
mod metrics;
mod overdue;
mod partition_error;
mod partitions;
mod producer_rotation;
mod rejected_record;
mod schema_asks;
mod transaction;
mod worker;

use std::sync::Arc;

use tally_platform::closing::Closing;
use tally_platform::config::Config;
use tally_platform::health::Health;
use tokio_util::sync::CancellationToken;

pub use error::Error;

/// Runs the configured number of workers until `shutdown`, then flushes what they hold and returns.
/// The first worker to fail stops the others.
///
/// `instance` tells this process from the others of its group, and stays the same when it is
/// started again.
pub async fn run(
    config: &Config,
    instance: &str,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let config = Arc::new(config.clone());
    let stop = shutdown.child_token();
    let mut workers = tokio::task::JoinSet::new();
    let closing = Closing::default();
    let parts: Vec<_> = (0..config.aggregator.workers).map(|_| closing.part()).collect();
    for (number, closing) in parts.into_iter().enumerate() {
        let (config, health, stop) = (config.clone(), health.clone(), stop.clone());
        // The topic is part of it, since another installation may have this group's default name.
        let (group, topic) = (&config.aggregator.group, &config.kafka.increments);
        let name = format!("{group}-{topic}-{instance}-{number}");
        let runtime = tokio::runtime::Handle::current();
        workers.spawn_blocking(move || {
            let _stop_the_others = stop.clone().drop_guard();
            let looks_for_strangers = number == 0;
            let ended = worker::run(
                &config,
                &name,
                looks_for_strangers,
                &health,
                &stop,
                &runtime,
                &closing,
            );
            // It may have ended before it had begun to count.
            closing.begin(&ended);
            ended
        });
    }
    let mut outcome = Ok(());
    while let Some(joined) = workers.join_next().await {
        let ended = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        outcome = outcome.and(ended);
    }
    outcome
}
