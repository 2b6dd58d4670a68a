//! The partitions that the group gave to this sink. Each of them has an inserter, with a bounded
//! queue to it, or is stopped.
//!
//! ```text
//!  start, at the ledger's position ─► Inserting ─► its task ended: Restart, Halted ─► start again
//!                                         │   └──► its task ended: Stop ─► Stopped, until
//!                                         │                                somebody has looked
//!                                         └─► release: what is in flight may end, the rest is
//!                                             the next owner's
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tally_counts::{StoredOffsets, next_offset};
use tally_kafka::KeptMessage;
use tally_platform::health::Condition;
use tally_platform::partition_metrics::{Lag, PartitionStatus, Statuses};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::inserter::{Inserter, InserterContext, InserterEnd};
use crate::partition_error::PartitionError;

/// How long an insert in flight may go on after its partition is to be let go. An insert that is
/// abandoned does no harm.
const RELEASE: Duration = Duration::from_secs(5);

enum PartitionState {
    Inserting(RunningInserter),
    /// Something is wrong that no retry mends, with what is from this offset of `deltas` on.
    Stopped {
        since: Timestamp,
        stored: Option<i64>,
    },
}

struct RunningInserter {
    task: JoinHandle<InserterEnd>,
    batches: mpsc::Sender<KeptMessage>,
    /// The queue had no room for another batch, and the partition's fetching is paused.
    is_paused: bool,
    /// The next offset of `deltas` to be stored.
    stored: watch::Receiver<i64>,
    /// The next offset after the last batch that was queued.
    queued: i64,
    /// The next offsets after the batches that were queued and are not known to be stored, with
    /// Kafka's time of each, in milliseconds since 1970.
    unstored: VecDeque<(i64, Option<i64>)>,
    /// What Kafka was told of that.
    committed: i64,
    attempt: u32,
    halt: CancellationToken,
}

impl RunningInserter {
    /// The offset up to which all is stored; where that is all that was fetched, up to `fetched`.
    fn reached(&self, fetched: Option<i64>) -> i64 {
        let stored = *self.stored.borrow();
        let fetched = fetched.filter(|_| stored >= self.queued);
        fetched.map_or(stored, |fetched| fetched.max(stored))
    }
}

/// Whether a partition's queue takes another batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    HasRoom,
    Full,
}

/// An inserter whose task has ended by itself.
pub(crate) struct EndedInserter {
    pub(crate) partition: i32,
    pub(crate) attempt: u32,
    pub(crate) end: InserterEnd,
}

pub(crate) struct Inserters {
    context: InserterContext,
    queued_batches: usize,
    runtime: Handle,
    /// Holds while no partition is stopped.
    whole: Condition,
    states: BTreeMap<i32, PartitionState>,
}

impl Inserters {
    pub(crate) fn new(
        context: InserterContext,
        queued_batches: usize,
        runtime: Handle,
        whole: Condition,
    ) -> Inserters {
        Inserters { context, queued_batches, runtime, whole, states: BTreeMap::new() }
    }

    /// Starts an inserter of a partition that is stored so far. `attempt` says how often this sink
    /// has started the partition before.
    pub(crate) fn start(&mut self, partition: i32, stored: StoredOffsets, attempt: u32) {
        let (batches, inbox) = mpsc::channel(self.queued_batches);
        let (told, stored_receiver) = watch::channel(stored.deltas);
        let halt = CancellationToken::new();
        let context = self.context.clone();
        let inserter = Inserter::new(context, partition, stored, attempt, halt.clone());
        let running = RunningInserter {
            task: self.runtime.spawn(inserter.run(inbox, told)),
            batches,
            is_paused: false,
            stored: stored_receiver,
            queued: stored.deltas,
            unstored: VecDeque::new(),
            committed: -1,
            attempt,
            halt,
        };
        self.states.insert(partition, PartitionState::Inserting(running));
    }

    /// Stops a partition, whether it has an inserter or not.
    pub(crate) fn stop(&mut self, partition: i32, error: &PartitionError) {
        let stored = self.stored().get(&partition).copied();
        let stopped = PartitionState::Stopped { since: Timestamp::now(), stored };
        let before = self.states.insert(partition, stopped);
        self.end(before);
        tracing::error!(partition, %error, "the partition stops; the others go on");
        let stopped = self.stopped();
        self.whole.set(false, format!("partitions {stopped:?} stopped; the last one: {error}"));
    }

    /// Ends the inserters of partitions that go to another member, and forgets those that were
    /// stopped.
    pub(crate) fn release(&mut self, partitions: &[i32]) {
        let released: Vec<PartitionState> =
            partitions.iter().filter_map(|partition| self.states.remove(partition)).collect();
        self.end(released);
        let stopped = self.stopped();
        self.whole.set(stopped.is_empty(), format!("partitions {stopped:?} stopped"));
    }

    /// Has the partition's inserter end between two inserts, to be started again at the ledger's
    /// position.
    pub(crate) fn halt(&self, partition: i32) {
        if let Some(PartitionState::Inserting(inserter)) = self.states.get(&partition) {
            inserter.halt.cancel();
        }
    }

    /// Queues a batch. It is dropped where its partition is not inserted, or not any more: such a
    /// partition is started again from the ledger's position, or is another member's.
    pub(crate) fn queue(&mut self, batch: KeptMessage) -> Queue {
        let Some(PartitionState::Inserting(inserter)) = self.states.get_mut(&batch.partition)
        else {
            return Queue::HasRoom;
        };
        inserter.queued = next_offset(batch.offset);
        inserter.unstored.push_back((inserter.queued, batch.timestamp_ms));
        match inserter.batches.try_send(batch) {
            Ok(()) if inserter.batches.capacity() > 0 => Queue::HasRoom,
            Ok(()) => {
                inserter.is_paused = true;
                Queue::Full
            }
            // Its task has ended: `take_ended` has it.
            Err(TrySendError::Closed(_)) => Queue::HasRoom,
            Err(TrySendError::Full(_)) => unreachable!("a partition is paused whose queue is full"),
        }
    }

    /// The partitions whose queue was full, and has room again.
    pub(crate) fn take_resumable(&mut self) -> Vec<i32> {
        let resumable = self.running_mut().filter_map(|(partition, inserter)| {
            let has_room = inserter.is_paused && inserter.batches.capacity() > 0;
            inserter.is_paused &= !has_room;
            has_room.then_some(partition)
        });
        resumable.collect()
    }

    /// The inserters that have ended by themselves. Their partitions have no state until they are
    /// started or stopped.
    pub(crate) fn take_ended(&mut self) -> Vec<EndedInserter> {
        let has_ended = |state: &mut PartitionState| match state {
            PartitionState::Inserting(inserter) => inserter.task.is_finished(),
            PartitionState::Stopped { .. } => false,
        };
        let ended = self.states.extract_if(.., |_, state| has_ended(state));
        let ended = ended.filter_map(|(partition, state)| match state {
            PartitionState::Inserting(RunningInserter { task, attempt, .. }) => {
                let end = self
                    .runtime
                    .block_on(task)
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                Some(EndedInserter { partition, attempt, end })
            }
            PartitionState::Stopped { .. } => None,
        });
        ended.collect()
    }

    /// Whether the group has given no partition to this sink.
    pub(crate) fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    pub(crate) fn is_inserting(&self, partition: i32) -> bool {
        matches!(self.states.get(&partition), Some(PartitionState::Inserting(_)))
    }

    /// The next offset of `deltas` to be stored, by partition that is inserted.
    pub(crate) fn stored(&self) -> BTreeMap<i32, i64> {
        let running = self.states.iter().filter_map(|(partition, state)| match state {
            PartitionState::Inserting(inserter) => Some((*partition, *inserter.stored.borrow())),
            PartitionState::Stopped { .. } => None,
        });
        running.collect()
    }

    /// The stored offsets that have moved since the last call. Where all that was fetched is
    /// stored, that is up to `fetched`: else a dashboard would show a lag for ever, of the markers
    /// that follow the last batch.
    pub(crate) fn take_moved(&mut self, fetched: impl Fn(i32) -> Option<i64>) -> Vec<(i32, i64)> {
        let moved = self.running_mut().filter_map(|(partition, inserter)| {
            let stored = inserter.reached(fetched(partition));
            let has_moved = stored > 0 && stored != inserter.committed;
            has_moved.then(|| {
                inserter.committed = stored;
                (partition, stored)
            })
        });
        moved.collect()
    }

    /// What each partition does, and how far it is behind its log, which ends at `ends`, as far as
    /// that is known; `fetched` as in [`Inserters::take_moved`].
    pub(crate) fn statuses(
        &mut self,
        ends: &BTreeMap<i32, i64>,
        fetched: impl Fn(i32) -> Option<i64>,
    ) -> Statuses {
        let status = |(&partition, state): (&i32, &mut PartitionState)| {
            let (state, next, since_ms) = match state {
                PartitionState::Stopped { since, stored } => {
                    ("stopped", *stored, Some(since.as_millisecond()))
                }
                PartitionState::Inserting(inserter) => {
                    let stored = inserter.reached(fetched(partition));
                    while inserter.unstored.pop_front_if(|(next, _)| *next <= stored).is_some() {}
                    let since_ms = inserter.unstored.front().and_then(|(_, ms)| *ms);
                    ("storing", Some(stored), since_ms)
                }
            };
            let offsets = ends.get(&partition).zip(next).map(|(end, next)| (end - next).max(0));
            let lag = offsets.map(|offsets| Lag { offsets, since_ms });
            (partition, PartitionStatus { state, next, lag })
        };
        self.states.iter_mut().map(status).collect()
    }

    fn running_mut(&mut self) -> impl Iterator<Item = (i32, &mut RunningInserter)> {
        self.states.iter_mut().filter_map(|(partition, state)| match state {
            PartitionState::Inserting(inserter) => Some((*partition, inserter)),
            PartitionState::Stopped { .. } => None,
        })
    }

    fn stopped(&self) -> BTreeSet<i32> {
        let is_stopped = |state| matches!(state, &PartitionState::Stopped { .. });
        self.states.iter().filter(|(_, state)| is_stopped(state)).map(|(p, _)| *p).collect()
    }

    fn end(&self, states: impl IntoIterator<Item = PartitionState>) {
        let mut tasks: Vec<JoinHandle<InserterEnd>> = Vec::new();
        for state in states {
            if let PartitionState::Inserting(inserter) = state {
                inserter.halt.cancel();
                tasks.push(inserter.task);
            }
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
