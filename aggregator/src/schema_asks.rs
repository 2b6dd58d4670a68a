//! Asks the registry for the schemas that partitions wait for, each by itself, while the worker
//! goes on with the other partitions.
//!
//! ```text
//!  worker ── ask ──► a task for each schema ── the registry's answer, or none ──► next ──► worker
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use tally_platform::registry::{Error, Lookup, Registry};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

pub(crate) struct SchemaAsks {
    registry: Registry,
    runtime: Handle,
    tasks: JoinSet<Answer>,
    /// The schemas that a task is on.
    asked: BTreeSet<u32>,
}

/// What came of asking for a schema.
pub(crate) struct Answer {
    pub(crate) schema: u32,
    pub(crate) said: Result<Lookup, Error>,
}

impl SchemaAsks {
    pub(crate) fn new(registry: Registry, runtime: Handle) -> SchemaAsks {
        SchemaAsks { registry, runtime, tasks: JoinSet::new(), asked: BTreeSet::new() }
    }

    /// Asks for a schema in so long, unless that is going on already.
    pub(crate) fn ask(&mut self, schema: u32, after: Duration) {
        if !self.asked.insert(schema) {
            return;
        }
        let registry = self.registry.clone();
        let ask = async move {
            tokio::time::sleep(after).await;
            Answer { schema, said: registry.schema(schema).await }
        };
        self.tasks.spawn_on(ask, &self.runtime);
    }

    /// The next answer, if there is one; never waits.
    pub(crate) fn next(&mut self) -> Option<Answer> {
        let ended = self.tasks.try_join_next()?;
        let answer = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        self.asked.remove(&answer.schema);
        Some(answer)
    }
}
