//! The memory, shared: by the tail that counts batches in, the requests that read it, and the
//! queries in flight.

use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tally_counts::{Position, StoredOffsets};
use tokio::sync::watch;

use crate::counter::Counter;
use crate::counter_memory::{
    Broken, CounterMemory, FlightId, Recall, Snapshot, SnapshotError, TotalsAsOf, Wanted,
};
use crate::vector::Vector;
use crate::window::Arrival;

pub(crate) struct SharedMemory {
    memory: Mutex<CounterMemory>,
    /// Told when the window has let go of something.
    trimmed: Condvar,
    progress: watch::Sender<Progress>,
    /// The most that the window may take.
    unstored_bytes: usize,
}

/// How far the tail is.
#[derive(Clone, Debug)]
struct Progress {
    position: Arc<Position>,
    broken: Option<Arc<Broken>>,
}

/// Why a position was not waited for to the end.
#[derive(Debug)]
pub(crate) enum WaitError {
    /// The time was up when the tail was here.
    Late {
        reached: Arc<Position>,
    },
    Broken(Arc<Broken>),
}

/// Why a query's snapshot gave no answer.
#[derive(Debug)]
pub(crate) enum FinishError {
    Snapshot(SnapshotError),
    Broken(Arc<Broken>),
}

/// What the reader holds in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    pub(crate) entries: usize,
    pub(crate) unstored_bytes: usize,
}

impl SharedMemory {
    pub(crate) fn new(
        start: Vector,
        cached_counters: NonZeroUsize,
        unstored_bytes: usize,
    ) -> SharedMemory {
        let memory = CounterMemory::new(start, cached_counters);
        let progress = Progress { position: Arc::clone(memory.position()), broken: None };
        SharedMemory {
            memory: Mutex::new(memory),
            trimmed: Condvar::new(),
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
        Holding { entries: memory.entries(), unstored_bytes: memory.unstored_bytes() }
    }

    /// Counts in the next batch of a partition, if the window has room for it within `patience`;
    /// else gives it back.
    pub(crate) fn apply(
        &self,
        arrival: Arrival,
        patience: Duration,
    ) -> Result<Option<Arrival>, Broken> {
        let full = |memory: &mut CounterMemory| !memory.has_room(&arrival, self.unstored_bytes);
        let waited = self.trimmed.wait_timeout_while(self.memory(), patience, full);
        let (mut memory, waited) = waited.expect("nobody panicked while changing the memory");
        if waited.timed_out() {
            return Ok(Some(arrival));
        }
        memory.apply(arrival)?;
        let position = Arc::clone(memory.position());
        drop(memory);
        self.progress.send_modify(|progress| progress.position = position);
        Ok(None)
    }

    /// Nothing is answered from now on.
    pub(crate) fn break_off(&self, broken: Arc<Broken>) {
        self.memory().break_off(Arc::clone(&broken));
        self.progress.send_modify(|progress| progress.broken = Some(broken));
    }

    pub(crate) fn learn(&self, vector: &Vector) {
        self.memory().learn(vector);
        self.trimmed.notify_all();
    }

    pub(crate) fn recall(&self, counters: &[Counter]) -> Result<Recall, Arc<Broken>> {
        let mut memory = self.memory();
        match memory.broken() {
            Some(broken) => Err(Arc::clone(broken)),
            None => Ok(memory.recall(counters)),
        }
    }

    /// A query is about to be sent: until the flight is dropped, what its snapshot may lack is
    /// kept.
    pub(crate) fn begin(self: &Arc<SharedMemory>) -> Flight {
        Flight { id: self.memory().begin(), state: Arc::clone(self) }
    }

    /// Waits until the tail includes `position`, but not longer than `limit`.
    pub(crate) async fn reach(
        &self,
        position: &Position,
        limit: Duration,
    ) -> Result<(), WaitError> {
        let mut progress = self.progress.subscribe();
        let decided =
            |progress: &Progress| progress.broken.is_some() || progress.position.includes(position);
        let waited =
            tokio::time::timeout(limit, progress.wait_for(|progress| decided(progress))).await;
        match waited {
            Ok(decided) => match &decided.expect("the sender lives as long as the state").broken {
                Some(broken) => Err(WaitError::Broken(Arc::clone(broken))),
                None => Ok(()),
            },
            Err(_) => {
                Err(WaitError::Late { reached: Arc::clone(&self.progress.borrow().position) })
            }
        }
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
        match memory.broken() {
            Some(broken) => Err(FinishError::Broken(Arc::clone(broken))),
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
        self.state.trimmed.notify_all();
    }
}
