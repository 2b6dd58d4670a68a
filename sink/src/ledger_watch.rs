//! A look at the ledger every ten seconds: that ClickHouse has lost its newest blocks is noticed
//! even if no batch comes, and so are rows that no sink wrote.
//!
//! ```text
//!  offsets that were stored ──► the ledgers, read in the background ──► partitions that went back
//!  partitions of the topic  ──► the table's, after that             ──► those that Kafka has not
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clickhouse::Client;
use clickhouse::error::Error;
use tally_platform::store::{self, Ledger, unknown_partitions};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

const INTERVAL: Duration = Duration::from_secs(10);

/// What is read of the table: the ledgers, and the partitions that the topic does not have.
type TableRead = (BTreeMap<i32, Ledger>, Vec<u32>);

/// The next offset of `deltas` to be stored, by partition.
type StoredDeltas = BTreeMap<i32, i64>;

pub(crate) struct LedgerWatch {
    client: Client,
    next_look: Instant,
    running: Option<RunningLook>,
}

struct RunningLook {
    /// What was known to be stored before the ledger was read.
    stored: StoredDeltas,
    task: JoinHandle<Result<TableRead, Error>>,
}

/// What a look has found.
pub(crate) struct Found {
    /// Partitions that the ledger has lost something of, or on which it contradicts itself.
    pub(crate) behind: Vec<i32>,
    /// Partitions that the table has rows of and the topic, as far as was known, has not.
    pub(crate) unknown: Vec<u32>,
}

impl LedgerWatch {
    pub(crate) fn new(client: Client) -> LedgerWatch {
        LedgerWatch { client, next_look: Instant::now() + INTERVAL, running: None }
    }

    /// Begins a look when it is due, and ends one that has its answer. The topic has so many
    /// `partitions`, as far as is known. Never waits.
    pub(crate) fn poll(
        &mut self,
        runtime: &Handle,
        partitions: i32,
        stored: impl FnOnce() -> StoredDeltas,
    ) -> Option<Found> {
        if let Some(running) = self.running.take_if(|running| running.task.is_finished()) {
            self.next_look = Instant::now() + INTERVAL;
            let read = runtime
                .block_on(running.task)
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            match read {
                Ok((ledgers, unknown)) => {
                    return Some(Found { behind: behind(&running.stored, &ledgers), unknown });
                }
                Err(error) => tracing::warn!(
                    %error,
                    "the ledger in ClickHouse cannot be checked; checking it again later"
                ),
            }
        } else if self.running.is_none() && Instant::now() >= self.next_look {
            let client = self.client.clone();
            let task = runtime.spawn(async move {
                let ledgers = store::ledgers(&client).await?;
                Ok((ledgers, unknown_partitions(&client, partitions).await?))
            });
            self.running = Some(RunningLook { stored: stored(), task });
        }
        None
    }
}

impl Drop for LedgerWatch {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }
}

fn behind(stored: &StoredDeltas, ledgers: &BTreeMap<i32, Ledger>) -> Vec<i32> {
    let is_behind = |(partition, least): &(&i32, &i64)| {
        let ledger = ledgers.get(*partition).copied().unwrap_or_default();
        ledger.stored_offsets().map_or(true, |found| found.deltas < **least)
    };
    stored.iter().filter(is_behind).map(|(partition, _)| *partition).collect()
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
        let stored = StoredDeltas::from([(0, 7), (1, 7), (2, 7), (3, 7), (4, 0)]);
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
