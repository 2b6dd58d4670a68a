//! A look at the ledger now and then: a store that lost its newest blocks is noticed even if no
//! batch comes.
//!
//! ```text
//!  positions that were stored ──► the ledgers, read in the background ──► partitions that are not there any more
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clickhouse::Client;
use clickhouse::error::Error;
use tally_platform::store::{self, Ledger};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::partition::Stored;

const INTERVAL: Duration = Duration::from_secs(10);

/// The next offset of `deltas` by partition.
pub(crate) type Positions = BTreeMap<i32, i64>;

pub(crate) struct Check {
    client: Client,
    due: Instant,
    running: Option<Running>,
}

struct Running {
    /// Known to be stored before the ledger was asked.
    stored: Positions,
    task: JoinHandle<Result<BTreeMap<i32, Ledger>, Error>>,
}

impl Check {
    pub(crate) fn new(client: Client) -> Check {
        Check { client, due: Instant::now() + INTERVAL, running: None }
    }

    /// Begins a look when it is due, and ends one that has its answer: the partitions that the
    /// ledger has lost something of, or that it contradicts itself on. Never waits.
    pub(crate) fn poll(
        &mut self,
        runtime: &Handle,
        stored: impl FnOnce() -> Positions,
    ) -> Vec<i32> {
        if let Some(running) = self.running.take_if(|running| running.task.is_finished()) {
            self.due = Instant::now() + INTERVAL;
            let read = runtime
                .block_on(running.task)
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            match read {
                Ok(ledgers) => return behind(&running.stored, &ledgers),
                Err(error) => tracing::warn!(%error, "check the ledger later"),
            }
        } else if self.running.is_none() && Instant::now() >= self.due {
            let client = self.client.clone();
            let task = runtime.spawn(async move { store::ledgers(&client, false).await });
            self.running = Some(Running { stored: stored(), task });
        }
        Vec::new()
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }
}

fn behind(stored: &Positions, ledgers: &BTreeMap<i32, Ledger>) -> Vec<i32> {
    let is_behind = |partition: &i32, least: i64| match Stored::of(ledgers.get(partition)) {
        Ok(found) => found.deltas < least,
        Err(_) => true,
    };
    stored
        .iter()
        .filter(|(partition, least)| is_behind(partition, **least))
        .map(|(p, _)| *p)
        .collect()
}

#[cfg(test)]
mod tests {
    use tally_counts::ledger;

    use super::*;

    fn ledger(sum: i64, high: i64) -> Ledger {
        Ledger { deltas: ledger::SumAndHigh { sum, high }, ..Ledger::default() }
    }

    #[test]
    fn a_ledger_that_went_back_or_contradicts_itself_is_found_and_one_that_went_on_is_not() {
        let stored = Positions::from([(0, 7), (1, 7), (2, 7), (3, 7), (4, 0)]);
        let ledgers = BTreeMap::from([
            (0, ledger(7, 7)),
            (1, ledger(9, 9)),
            (2, ledger(6, 6)),
            (5, ledger(1, 1)),
        ]);
        assert_eq!(behind(&stored, &ledgers), [2, 3]);
        assert_eq!(behind(&stored, &BTreeMap::from([(3, ledger(6, 7))])), [0, 1, 2, 3]);
    }
}
