//! The sink: each batch on `deltas` becomes one block in ClickHouse, once.
//!
//! ```text
//!         ┌─ consumer: a thread, in the group ───────┐   ┌─ inserter: a task a partition ─┐
//! deltas  │ assigned: start at the ledger's position │   │ chain ─► Block (data + ledger) │
//! ───────►│ fetch ─► bounded queue, pause when full ─┼──►│   ─► fenced insert, again      ├►counts
//!         │ commit offsets, for dashboards only      │◄──│      until it is certain       │
//!         └──────────────────────────────────────────┘   └────────────────────────────────┘
//!              stored offset, or: start again at the ledger's position
//! ```
//!
//! The ledger in the table is the position; Kafka's committed offsets are never read. Since
//! ClickHouse itself refuses a block that does not follow the ledger's position, a sink that has
//! lost its partition without knowing it changes nothing. That ClickHouse does so, and keeps a
//! block whole, is proven on a scratch table before the sink takes its first partition.
//!
//! Who owns what: `consumer` owns the loop, `inserters` each partition's state, `topic_watch`
//! what is known of the topic, `ledger_watch` the comparison with the ledger.

pub mod block;
mod consumer;
mod consumer_thread;
mod endpoint;
mod error;
mod insert;
mod insert_failure;
mod inserter;
mod inserters;
mod ledger_watch;
mod metrics;
mod partition_error;
mod proof;
mod request_body;
mod row_order;
mod store_health;
mod topic_watch;

use tally_platform::closing::Closing;
use tally_platform::config::Config;
use tally_platform::health::Health;
use tokio_util::sync::CancellationToken;

pub use error::Error;
pub use insert::{SETTINGS, TABLE_COLUMNS, structure, table_values};
pub use proof::Promise;

/// Runs until `shutdown`, then lets inserts in flight finish and returns.
pub async fn run(
    config: &Config,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let config = config.clone();
    let (runtime, closing) = (tokio::runtime::Handle::current(), Closing::default().part());
    let consume = move || {
        let ended = consumer::run(&config, &health, &shutdown, &runtime, &closing);
        // It may have ended before it had begun to store.
        closing.begin(&ended);
        ended
    };
    tokio::task::spawn_blocking(consume)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
