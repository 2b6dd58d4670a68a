//! A read: waits for its position, asks the memory, then the store.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tally_counts::Position;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::counter::Counter;
use crate::counter_memory::{Recall, TotalsAsOf, Unreadable, Wanted};
use crate::metrics::Metrics;
use crate::misses::{Job, LookupError, QUEUED_KIB, look_up};
use crate::shared_memory::{SharedMemory, WaitError};
use crate::store::Store;

/// Queries of ranges in flight at once, which nothing remembers and nothing joins.
const RANGE_QUERIES: usize = 8;

/// Reads that wait for a position at once.
const WAITS: usize = 8192;

/// How long a read waits for the store, the reads before it included.
const STORE_WAIT: Duration = Duration::from_secs(15);

/// Why a read was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The read asks for a position of a partition that `deltas` does not have.
    #[error("there is no partition {partition}: deltas has {partitions}")]
    UnknownPartition { partition: i32, partitions: usize },
    #[error("{RANGE_QUERIES} ranges are being read")]
    TooManyRanges,
    #[error("{WAITS} reads wait for a position")]
    TooManyWaits,
    #[error("the queue of reads that wait for the store is full")]
    QueueFull,
    #[error("the reader is stopping")]
    Stopping,
    #[error("`after` is {after}, but the log is read up to {reached}")]
    NotReached { after: Position, reached: Arc<Position> },
    /// The read asks for a position of a partition that stands still.
    #[error("`after` is {after}, but the log is read up to {reached}: {why}")]
    StandsStill { after: Position, reached: Arc<Position>, why: String },
    #[error("no answer within {STORE_WAIT:?}")]
    Timeout,
    #[error(transparent)]
    Unreadable(Arc<Unreadable>),
    #[error("{0}")]
    Lookup(Arc<LookupError>),
}

pub(crate) struct Reads {
    state: Arc<SharedMemory>,
    store: Store,
    misses: mpsc::Sender<Job>,
    /// What the names in the queue may take, in KiB.
    queued: Arc<Semaphore>,
    ranges: Semaphore,
    waits: Semaphore,
    max_wait: Duration,
    metrics: Metrics,
}

impl Reads {
    pub(crate) fn new(
        state: Arc<SharedMemory>,
        store: Store,
        misses: mpsc::Sender<Job>,
        max_wait: Duration,
        metrics: Metrics,
    ) -> Reads {
        let queued = Arc::new(Semaphore::new(QUEUED_KIB as usize));
        let (ranges, waits) = (Semaphore::new(RANGE_QUERIES), Semaphore::new(WAITS));
        Reads { state, store, misses, queued, ranges, waits, max_wait, metrics }
    }

    /// The counters' totals, all as of one position, which includes `after`.
    pub(crate) async fn counters(
        &self,
        counters: &[Counter],
        after: &Position,
    ) -> Result<TotalsAsOf, Error> {
        self.reach(after).await?;
        match self.recall(counters)? {
            Recall::Found(answer) => {
                self.metrics.looked_at(counters.len(), 0);
                return Ok(answer);
            }
            Recall::Missing(missing) => {
                let misses = missing.len();
                self.metrics.looked_at(counters.len() - misses, misses);
                let answer = self.ask(missing).await?;
                if misses == counters.len() {
                    return Ok(answer);
                }
                if let Recall::Found(answer) = self.recall(counters)? {
                    return Ok(answer);
                }
            }
            Recall::Apart => self.metrics.looked_at(0, counters.len()),
        }
        self.ask(counters.to_vec()).await
    }

    /// What the counter gained in some buckets.
    pub(crate) async fn range(
        &self,
        counter: &Counter,
        buckets: &Range<u64>,
        after: &Position,
    ) -> Result<TotalsAsOf, Error> {
        self.reach(after).await?;
        let Ok(_permit) = self.ranges.try_acquire() else {
            return Err(Error::TooManyRanges);
        };
        let found = look_up(&self.state, &self.store, Wanted::Buckets(counter, buckets)).await;
        found.map_err(|error| Error::Lookup(Arc::new(error)))
    }

    async fn reach(&self, after: &Position) -> Result<(), Error> {
        if self.state.has_reached(after) {
            return Ok(());
        }
        let Ok(_permit) = self.waits.try_acquire() else { return Err(Error::TooManyWaits) };
        self.state.reach(after, self.max_wait).await.map_err(|error| match error {
            WaitError::Late { reached } => self.late(after, reached),
            WaitError::StandsStill { reached, why } => {
                Error::StandsStill { after: after.clone(), reached, why }
            }
            WaitError::Unreadable(unreadable) => Error::Unreadable(unreadable),
        })
    }

    /// A partition that was not known might have been added just then, so it is waited for as any
    /// other.
    fn late(&self, after: &Position, reached: Arc<Position>) -> Error {
        let partitions = self.state.partitions();
        let is_known =
            |partition: i32| usize::try_from(partition).is_ok_and(|number| number < partitions);
        match after.iter().find(|(partition, _)| !is_known(*partition)) {
            Some((partition, _)) => Error::UnknownPartition { partition, partitions },
            None => Error::NotReached { after: after.clone(), reached },
        }
    }

    fn recall(&self, counters: &[Counter]) -> Result<Recall, Error> {
        self.state.recall(counters).map_err(Error::Unreadable)
    }

    async fn ask(&self, counters: Vec<Counter>) -> Result<TotalsAsOf, Error> {
        let (reply, answered) = oneshot::channel();
        let bytes: usize = counters.iter().map(Counter::name_bytes).sum();
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.queued).try_acquire_many_owned(kib);
        let Ok(room) = room else { return Err(Error::QueueFull) };
        self.misses.try_send(Job { counters, reply, _room: room }).map_err(
            |error| match error {
                mpsc::error::TrySendError::Full(_) => Error::QueueFull,
                mpsc::error::TrySendError::Closed(_) => Error::Stopping,
            },
        )?;
        match tokio::time::timeout(STORE_WAIT, answered).await {
            Ok(Ok(answer)) => answer.map_err(Error::Lookup),
            Ok(Err(_)) => Err(Error::Stopping),
            Err(_) => Err(Error::Timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use tally_counts::StoredOffsets;

    use super::*;
    use crate::cache::CacheLimits;
    use crate::misses::{QUEUED_JOBS, queue};
    use crate::vector::Vector;

    /// Two partitions, nothing counted, and a queue of misses that nobody serves.
    fn reads() -> (Reads, mpsc::Receiver<Job>) {
        let start = Vector::new(vec![StoredOffsets::default(); 2]);
        let cached = CacheLimits { counters: 80, bytes: 1 << 20 };
        let state = Arc::new(SharedMemory::new(start, cached, 1 << 20));
        let metrics = Metrics::new();
        let store = Store::new(clickhouse::Client::default(), metrics.clone());
        let (sender, jobs) = queue();
        let wait = Duration::from_millis(10);
        (Reads::new(state, store, sender, wait, metrics), jobs)
    }

    #[tokio::test]
    async fn more_waits_than_there_is_room_for_are_refused_at_once() {
        let (reads, _jobs) = reads();
        let counter = [Counter::new("ns", "a")];
        let later: Position = [(1, 5)].into_iter().collect();
        let taken = reads.waits.try_acquire_many(WAITS as u32).unwrap();
        let refused = reads.counters(&counter, &later).await;
        assert!(matches!(refused, Err(Error::TooManyWaits)), "{refused:?}");
        drop(taken);
        let late = reads.counters(&counter, &later).await;
        assert!(matches!(late, Err(Error::NotReached { .. })), "{late:?}");
    }

    #[tokio::test]
    async fn more_ranges_than_there_is_room_for_are_refused_at_once() {
        let (reads, _jobs) = reads();
        let _taken = reads.ranges.try_acquire_many(RANGE_QUERIES as u32).unwrap();
        let refused = reads.range(&Counter::new("ns", "a"), &(0..1), &Position::default()).await;
        assert!(matches!(refused, Err(Error::TooManyRanges)), "{refused:?}");
    }

    /// Whether the read of these counters is queued. Its answer is not waited for; what is queued
    /// stays there.
    async fn is_queued(reads: &Reads, counters: &[Counter]) -> bool {
        let start = Position::default();
        let asked = reads.counters(counters, &start);
        match tokio::time::timeout(Duration::ZERO, asked).await {
            Err(_) => true,
            Ok(Err(Error::QueueFull)) => false,
            Ok(other) => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn misses_are_queued_up_to_a_number_and_up_to_so_many_bytes() {
        let many = |number: usize| vec![Counter::new("ns", &format!("{number}"))];
        let long = |number: usize| {
            let name = |of_job: u32| format!("{number} {of_job} {}", "x".repeat(8 << 10));
            (0..512).map(|of_job| Counter::new("ns", &name(of_job))).collect::<Vec<_>>()
        };
        let kib = long(0).iter().map(Counter::name_bytes).sum::<usize>().div_ceil(1024);
        type Job<'j> = &'j dyn Fn(usize) -> Vec<Counter>;
        let jobs: [(usize, Job<'_>); 2] =
            [(QUEUED_JOBS, &many), (QUEUED_KIB as usize / kib, &long)];
        for (fits, job) in jobs {
            let (reads, mut jobs) = reads();
            for number in 0..fits {
                assert!(is_queued(&reads, &job(number)).await, "{number} of {fits}");
            }
            assert!(!is_queued(&reads, &job(fits)).await, "{fits} fit");
            drop(jobs.try_recv().unwrap());
            assert!(is_queued(&reads, &job(fits)).await, "there is room again");
        }
    }
}
