//! Asks the registry for schemas, each by itself, while the worker goes on with other partitions.
//!
//! ```text
//!  ask ───────► a task for each schema that a partition waits for ─┐
//!  ask_ahead ─► a task for each that it will wait for next,        ├─► next ──► worker
//!               a few of them at a time ───────────────────────────┘
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tally_platform::registry::{Error, Lookup, Registry};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The most schemas that are asked for before a partition waits for them, and how many of those at
/// the same time.
const MAX_AHEAD: usize = 4096;
const AHEAD_AT_ONCE: usize = 16;

pub(crate) struct SchemaAsks {
    registry: Registry,
    runtime: Handle,
    tasks: JoinSet<Answer>,
    /// The schemas that a partition waits for, and those that are asked for ahead.
    asked: BTreeSet<u32>,
    ahead: BTreeSet<u32>,
    places: Arc<Semaphore>,
}

/// What came of asking for a schema.
pub(crate) struct Answer {
    pub(crate) schema: u32,
    pub(crate) said: Result<Lookup, Error>,
    is_ahead: bool,
}

impl SchemaAsks {
    pub(crate) fn new(registry: Registry, runtime: Handle) -> SchemaAsks {
        SchemaAsks {
            registry,
            runtime,
            tasks: JoinSet::new(),
            asked: BTreeSet::new(),
            ahead: BTreeSet::new(),
            places: Arc::new(Semaphore::new(AHEAD_AT_ONCE)),
        }
    }

    /// Asks for a schema in so long, unless that is going on already.
    pub(crate) fn ask(&mut self, schema: u32, after: Duration) {
        if self.asked.insert(schema) {
            let registry = self.registry.clone();
            let ask = async move {
                tokio::time::sleep(after).await;
                Answer { schema, said: registry.schema(schema).await, is_ahead: false }
            };
            self.tasks.spawn_on(ask, &self.runtime);
        }
    }

    /// As [`SchemaAsks::ask`], for a schema that no partition waits for yet: it has to wait until
    /// others were asked for, and is not asked for where there are too many.
    pub(crate) fn ask_ahead(&mut self, schema: u32, after: Duration) {
        let is_room = self.ahead.len() < MAX_AHEAD && !self.asked.contains(&schema);
        if is_room && self.ahead.insert(schema) {
            let (registry, places) = (self.registry.clone(), Arc::clone(&self.places));
            let ask = async move {
                tokio::time::sleep(after).await;
                let _place = places.acquire().await.expect("it is never closed");
                Answer { schema, said: registry.schema(schema).await, is_ahead: true }
            };
            self.tasks.spawn_on(ask, &self.runtime);
        }
    }

    /// The next answer, if there is one; never waits.
    pub(crate) fn next(&mut self) -> Option<Answer> {
        let ended = self.tasks.try_join_next()?;
        let answer = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let of = if answer.is_ahead { &mut self.ahead } else { &mut self.asked };
        of.remove(&answer.schema);
        Some(answer)
    }
}
