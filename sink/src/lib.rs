//! The sink: each batch on `deltas` becomes one block in the store, once.
//!
//! ```text
//!          ┌─ consumer (a thread, a member of the group) ─┐      ┌─ a task per partition ──────────────────────┐
//!  deltas  │ assign: start at the ledger's position       │      │ chain ─► Block (data + ledger rows)         │
//!  ───────►│ fetch ─► bounded queue, pause when full ─────┼─────►│       ─► fenced insert, again until certain ├──► counts
//!          │ commit offsets, for dashboards only          │◄─────│ position, or: start again at the ledger's   │
//!          └──────────────────────────────────────────────┘      └─────────────────────────────────────────────┘
//! ```
//!
//! The ledger in the table is the position; Kafka's committed offsets are never read. Since the
//! store itself refuses a block that does not follow the ledger's position, a sink that has lost
//! its partition without knowing changes nothing. That the store does so, and keeps a block whole,
//! is proven on a scratch table before the sink takes its first partition.

mod answer;
mod backoff;
pub mod block;
mod body;
mod broken;
mod check;
mod consumer;
mod endpoint;
mod error;
mod insert;
mod lanes;
mod log;
mod metrics;
mod partition;
mod proof;
mod standing;

use tally_platform::config::Config;
use tally_platform::health::Health;
use tokio_util::sync::CancellationToken;

pub use error::Error;
pub use insert::{SETTINGS, structure};
pub use proof::Promise;

/// Runs until `shutdown`, then lets inserts in flight finish and returns.
pub async fn run(
    config: &Config,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let config = config.clone();
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || consumer::run(&config, &health, &shutdown, &runtime))
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
