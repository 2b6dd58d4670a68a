//! The memory, shared: by the tail that counts batches in, the requests that read it, and the
//! queries in flight.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tally_counts::{Position, StoredOffsets};
use tokio::sync::watch;

use crate::cache::CacheLimits;
use crate::counter::Counter;
use crate::counter_memory::{
    Broken, CounterMemory, FlightId, Recall, Snapshot, SnapshotError, TotalsAsOf, Unreadable,
    Wanted,
};
use crate::standstills::Standing;
use crate::vector::Vector;
use crate::window::Arrival;

pub(crate) struct SharedMemory {
    memory: Mutex<CounterMemory>,
    progress: watch::Sender<Progress>,
    /// The most that the window may take.
    unstored_bytes: usize,
}

/// How far the tail is, and what of it stands still.
#[derive(Clone, Debug)]
struct Progress {
    position: Arc<Position>,
    standing: Arc<Standing>,
    unreadable: Option<Arc<Unreadable>>,
}

/// Why a position was not waited for to the end.
#[derive(Debug)]
pub(crate) enum WaitError {
    /// The time was up when the tail was here.
    Late {
        reached: Arc<Position>,
    },
    /// A partition that has to go on does not.
    StandsStill {
        reached: Arc<Position>,
        why: String,
    },
    Unreadable(Arc<Unreadable>),
}

/// Why a query's snapshot gave no answer.
#[derive(Debug)]
pub(crate) enum FinishError {
    Snapshot(SnapshotError),
    Unreadable(Arc<Unreadable>),
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    Counted,
    /// The window has no room for it; it is to be read again.
    NoRoom {
        bytes: usize,
    },
    /// It was counted in before.
    Known,
}

/// What the reader holds in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    pub(crate) entries: usize,
    pub(crate) cached_bytes: usize,
    pub(crate) unstored_bytes: usize,
}

impl SharedMemory {
    pub(crate) fn new(start: Vector, cached: CacheLimits, unstored_bytes: usize) -> SharedMemory {
        let memory = CounterMemory::new(start, cached);
        let progress = Progress {
            position: Arc::clone(memory.position()),
            standing: Arc::default(),
            unreadable: None,
        };
        SharedMemory {
            memory: Mutex::new(memory),
            progress: watch::Sender::new(progress),
            unstored_bytes,
        }
    }

    fn memory(&self) -> MutexGuard<'_, CounterMemory> {
        self.memory
            .lock()
            .expect("nobody panicked while changing the memory: half a change is a wrong count")
    }

    pub(crate) fn partitions(&self) -> usize {
        self.memory().partitions()
    }

    pub(crate) fn tail(&self, partition: usize) -> StoredOffsets {
        self.memory().tail(partition)
    }

    pub(crate) fn holding(&self) -> Holding {
        let memory = self.memory();
        Holding {
            entries: memory.entries(),
            cached_bytes: memory.cached_bytes(),
            unstored_bytes: memory.unstored_bytes(),
        }
    }

    /// Counts in the next batch of a partition, if the window has room for it.
    pub(crate) fn apply(&self, arrival: Arrival) -> Result<Applied, Broken> {
        let (partition, offset, bytes) = (arrival.partition, arrival.offset, arrival.bytes());
        let mut memory = self.memory();
        if offset < memory.tail(partition).deltas {
            return Ok(Applied::Known);
        }
        if !memory.has_room(partition, offset, bytes, self.unstored_bytes) {
            return Ok(Applied::NoRoom { bytes });
        }
        memory.apply(arrival)?;
        self.tell_position(memory);
        Ok(Applied::Counted)
    }

    /// Whether a batch of `bytes` that comes next in a partition has room in the window by now.
    pub(crate) fn has_room(&self, partition: usize, bytes: usize) -> bool {
        let memory = self.memory();
        let next = memory.tail(partition).deltas;
        memory.has_room(partition, next, bytes, self.unstored_bytes)
    }

    /// What the window keeps of one partition.
    pub(crate) fn unstored_bytes_of(&self, partition: usize) -> usize {
        self.memory().unstored_bytes_of(partition)
    }

    /// The topic has at least as many partitions.
    pub(crate) fn grow(&self, partitions: usize) {
        let mut memory = self.memory();
        memory.grow(partitions);
        self.tell_position(memory);
    }

    /// The partition is read from `place` on, which is not where its tail is.
    pub(crate) fn restart(&self, partition: usize, place: StoredOffsets) {
        let mut memory = self.memory();
        memory.restart(partition, place);
        self.tell_position(memory);
    }

    fn tell_position(&self, memory: MutexGuard<'_, CounterMemory>) {
        let position = Arc::clone(memory.position());
        drop(memory);
        self.progress.send_modify(|progress| progress.position = position);
    }

    /// Says what stands still, to those that wait for it to go on.
    pub(crate) fn tell_standing(&self, standing: Arc<Standing>) {
        self.progress.send_modify(|progress| progress.standing = standing);
    }

    /// Nothing is answered from now on.
    pub(crate) fn break_off(&self, unreadable: Arc<Unreadable>) {
        self.memory().break_off(Arc::clone(&unreadable));
        self.progress.send_modify(|progress| progress.unreadable = Some(unreadable));
    }

    /// The store was seen at `vector`. Returns the partitions of which it has something else than
    /// the log at the same place.
    pub(crate) fn learn(&self, vector: &Vector) -> Vec<(usize, Broken)> {
        let mut memory = self.memory();
        memory.learn(vector);
        memory.disagreements(vector)
    }

    pub(crate) fn recall(&self, counters: &[Counter]) -> Result<Recall, Arc<Unreadable>> {
        let mut memory = self.memory();
        match memory.unreadable() {
            Some(unreadable) => Err(Arc::clone(unreadable)),
            None => Ok(memory.recall(counters)),
        }
    }

    /// A query is about to be sent: until the flight is dropped, what its snapshot may lack is
    /// kept.
    pub(crate) fn begin(self: &Arc<SharedMemory>) -> Flight {
        Flight { id: self.memory().begin(), state: Arc::clone(self) }
    }

    /// Whether a read of `position` need not wait.
    pub(crate) fn has_reached(&self, position: &Position) -> bool {
        position.is_empty() || self.progress.borrow().position.includes(position)
    }

    /// Waits until the tail includes `position`, but not longer than `limit`, and not for a
    /// partition that stands still.
    pub(crate) async fn reach(
        &self,
        position: &Position,
        limit: Duration,
    ) -> Result<(), WaitError> {
        let mut progress = self.progress.subscribe();
        let decided = progress.wait_for(|progress| progress.decide(position).is_some());
        let decision = match tokio::time::timeout(limit, decided).await {
            Ok(decided) => decided.expect("the sender lives as long as the state").decide(position),
            Err(_) => None,
        };
        let late = || WaitError::Late { reached: Arc::clone(&self.progress.borrow().position) };
        decision.unwrap_or_else(|| Err(late()))
    }
}

impl Progress {
    /// What a read that waits for `position` is told, if it need not wait longer.
    fn decide(&self, position: &Position) -> Option<Result<(), WaitError>> {
        if let Some(unreadable) = &self.unreadable {
            return Some(Err(WaitError::Unreadable(Arc::clone(unreadable))));
        }
        if self.position.includes(position) {
            return Some(Ok(()));
        }
        let lacks = |partition: i32| {
            position.get(partition).is_some_and(|next| self.position.get(partition) < Some(next))
        };
        let (_, why) = self.standing.iter().find(|(partition, _)| lacks(**partition))?;
        let (reached, why) = (Arc::clone(&self.position), why.to_string());
        Some(Err(WaitError::StandsStill { reached, why }))
    }
}

/// A query in flight.
pub(crate) struct Flight {
    state: Arc<SharedMemory>,
    id: FlightId,
}

impl Flight {
    pub(crate) fn finish(
        self,
        wanted: Wanted<'_>,
        snapshot: &Snapshot,
    ) -> Result<TotalsAsOf, FinishError> {
        let mut memory = self.state.memory();
        match memory.unreadable() {
            Some(unreadable) => Err(FinishError::Unreadable(Arc::clone(unreadable))),
            None => memory.finish(wanted, snapshot).map_err(FinishError::Snapshot),
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Dropped by a panic that spoiled the memory: nothing is answered any more, and nothing
        // need be let go of.
        if let Ok(mut memory) = self.state.memory.lock() {
            memory.end(self.id);
        }
    }
}
