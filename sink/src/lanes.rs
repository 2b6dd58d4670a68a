//! The partitions that this sink has: each a task, a bounded queue to it, and where it is.
//!
//! ```text
//!  start ──► at the ledger's position ──► task ──► Rewind, Halted ──► start again, with a fresh token
//!                                          │  └──► Broken ──► stopped until somebody has looked
//!                                          └──► release: what is in flight may end, the rest is the next owner's
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use tally_kafka::KeptMessage;
use tally_platform::store::{self, Ledger};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::broken::Broken;
use crate::check::Positions;
use crate::consumer::Sink;
use crate::partition::{End, Partition, Stored};

const LEDGER_RETRY: Duration = Duration::from_secs(1);
/// How long an insert in flight may go on after its partition is to be let go; an abandoned one
/// does no harm.
const RELEASE: Duration = Duration::from_secs(5);

pub(crate) struct Lane {
    task: JoinHandle<End>,
    pub(crate) batches: mpsc::Sender<KeptMessage>,
    /// There is no room for another batch.
    pub(crate) is_full: bool,
    pub(crate) position: watch::Receiver<i64>,
    pub(crate) committed: i64,
    attempt: u32,
    halt: CancellationToken,
}

impl Lane {
    /// Has the partition started again at the ledger's position.
    pub(crate) fn halt(&self) {
        self.halt.cancel();
    }
}

impl Sink<'_> {
    /// Starts again the tasks that found the store elsewhere, and stops the partitions that are
    /// broken.
    pub(crate) fn look_after_tasks(&mut self) -> Result<(), Error> {
        let ended: Vec<i32> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.task.is_finished())
            .map(|(p, _)| *p)
            .collect();
        for partition in ended {
            let lane = self.lanes.remove(&partition).expect("it was just there");
            let end = self
                .runtime
                .block_on(lane.task)
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            match end {
                End::Rewind | End::Halted => {
                    tracing::warn!(partition, "start again at the ledger's position");
                    self.metrics.rewound();
                    self.fetcher.stop(partition);
                    self.start(&[(partition, lane.attempt + 1)])?;
                }
                End::Broken(broken) => self.note_broken(partition, &broken),
            }
        }
        Ok(())
    }

    /// Has the partitions started again whose blocks the ledger does not know any more.
    pub(crate) fn check_ledger(&mut self) {
        let stored = || -> Positions {
            self.lanes
                .iter()
                .map(|(partition, lane)| (*partition, *lane.position.borrow()))
                .collect()
        };
        for partition in self.check.poll(&self.runtime, stored) {
            if let Some(lane) = self.lanes.get(&partition) {
                tracing::warn!(partition, "the store has lost blocks that it had");
                lane.halt();
            }
        }
    }

    fn note_broken(&mut self, partition: i32, broken: &Broken) {
        tracing::error!(partition, error = %broken, "the partition stops; the others go on");
        self.broken.insert(partition);
        self.whole
            .set(false, format!("partitions {:?} stopped; the last one: {broken}", self.broken));
        self.fetcher.stop(partition);
    }

    /// Stops a partition that is assigned.
    pub(crate) fn give_up(&mut self, partition: i32, broken: &Broken) {
        let lane = self.lanes.remove(&partition);
        self.end(lane);
        self.note_broken(partition, broken);
    }

    /// Starts partitions at the ledger's positions, but for broken ones.
    pub(crate) fn start(&mut self, partitions: &[(i32, u32)]) -> Result<(), Error> {
        let Some(ledgers) = self.ledgers() else { return Ok(()) };
        let mut whole = Vec::new();
        for &(partition, attempt) in partitions {
            match Stored::of(ledgers.get(&partition)) {
                Ok(stored) => {
                    whole.push((partition, stored.deltas));
                    self.lanes.insert(partition, self.lane(partition, stored, attempt));
                }
                Err(error) => self.note_broken(partition, &error),
            }
        }
        self.fetcher.start(&whole).map_err(Error::kafka("start reading"))
    }

    /// The ledgers; waits for a store that is away, unless the sink is to stop.
    fn ledgers(&self) -> Option<BTreeMap<i32, Ledger>> {
        while !self.stop.is_cancelled() {
            self.heartbeat.beat();
            match self.runtime.block_on(store::ledgers(&self.client, false)) {
                Ok(ledgers) => return Some(ledgers),
                Err(error) => tracing::warn!(%error, "wait for the store's ledger"),
            }
            self.pause(LEDGER_RETRY);
        }
        None
    }

    fn lane(&self, partition: i32, stored: Stored, attempt: u32) -> Lane {
        let (batches, inbox) = mpsc::channel(self.config.sink.queued_batches);
        let (told, position) = watch::channel(stored.deltas);
        let halt = CancellationToken::new();
        let task = Partition {
            client: self.client.clone(),
            endpoint: self.endpoint.clone(),
            topic_id: self.topic_id.clone(),
            partition,
            stored,
            attempt,
            source_id: None,
            is_proven: false,
            metrics: self.metrics.clone(),
            standing: self.standing.of(partition),
            halt: halt.clone(),
        };
        let task = self.runtime.spawn(task.run(inbox, told));
        Lane { task, batches, is_full: false, position, committed: -1, attempt, halt }
    }

    /// Ends the partitions' tasks.
    pub(crate) fn release(&mut self, partitions: &[i32]) {
        let lanes: Vec<Lane> =
            partitions.iter().filter_map(|partition| self.lanes.remove(partition)).collect();
        partitions.iter().for_each(|partition| self.fetcher.stop(*partition));
        self.end(lanes);
        self.broken.retain(|partition| !partitions.contains(partition));
        self.whole.set(self.broken.is_empty(), format!("partitions {:?} stopped", self.broken));
    }

    fn end(&self, lanes: impl IntoIterator<Item = Lane>) {
        let mut tasks: Vec<JoinHandle<End>> = Vec::new();
        for lane in lanes {
            lane.halt.cancel();
            tasks.push(lane.task);
        }
        self.runtime.block_on(async {
            let deadline = tokio::time::Instant::now() + RELEASE;
            for mut task in tasks {
                if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                    task.abort();
                }
            }
        });
    }
}
