//! Misses that arrive together go down in one query.
//!
//! ```text
//!  requests ──Job──► queue (bounded) ──► while a query is in flight, the next jobs wait
//!                                        then: the memory answers those that it can by now,
//!                                        the others' counters become the next query, each once
//! ```

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::counter::Counter;
use crate::counter_memory::{Recall, SnapshotError, TotalsAsOf, Unreadable, Wanted};
use crate::shared_memory::{FinishError, SharedMemory};
use crate::store::{Store, StoreError};

/// The most counters that one query asks for, and so the most that one request may ask for.
pub(crate) const MAX_COUNTERS: usize = 1000;

/// Jobs that wait while a query is in flight.
pub(crate) const QUEUED_JOBS: usize = 1024;

/// What the names in jobs may take, also in those that nobody waits for any more, in KiB.
pub(crate) const QUEUED_KIB: u32 = 64 << 10;

/// How often a replica that lags is asked again, and how long after.
const TRIES: usize = 4;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Why a look-up gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Snapshot(SnapshotError),
    #[error(transparent)]
    Unreadable(Arc<Unreadable>),
}

/// What one request misses, at most [`MAX_COUNTERS`].
pub(crate) struct Job {
    pub(crate) counters: Vec<Counter>,
    pub(crate) reply: oneshot::Sender<Result<TotalsAsOf, Arc<LookupError>>>,
    /// Given back when the job is done with.
    pub(crate) _room: OwnedSemaphorePermit,
}

pub(crate) fn queue() -> (mpsc::Sender<Job>, mpsc::Receiver<Job>) {
    mpsc::channel(QUEUED_JOBS)
}

/// Looks up what is queued, until `stop`.
pub(crate) async fn serve(
    state: &Arc<SharedMemory>,
    store: &Store,
    mut jobs: mpsc::Receiver<Job>,
    stop: &CancellationToken,
) {
    let mut held_over = None;
    loop {
        let first = match held_over.take() {
            Some(job) => job,
            None => match stop.run_until_cancelled(jobs.recv()).await {
                Some(Some(job)) => job,
                Some(None) | None => return,
            },
        };
        let together;
        (together, held_over) = gather(first, &mut jobs);
        let missing = together.into_iter().filter_map(|job| still_missing(state, job)).collect();
        if stop.run_until_cancelled(answer(state, store, missing)).await.is_none() {
            return;
        }
    }
}

/// As many jobs as fit into one query, and the one that does not fit any more.
fn gather(first: Job, jobs: &mut mpsc::Receiver<Job>) -> (Vec<Job>, Option<Job>) {
    let mut counters = first.counters.len();
    let mut together = vec![first];
    while let Ok(job) = jobs.try_recv() {
        counters += job.counters.len();
        if counters > MAX_COUNTERS {
            return (together, Some(job));
        }
        together.push(job);
    }
    (together, None)
}

/// Gives the job back unless the query before has brought all that it asks for, or nobody waits for
/// it any more.
fn still_missing(state: &SharedMemory, job: Job) -> Option<Job> {
    if job.reply.is_closed() {
        return None;
    }
    match state.recall(&job.counters) {
        Ok(Recall::Found(answer)) => reply(job, Ok(answer)),
        Ok(Recall::Missing(_) | Recall::Apart) => return Some(job),
        Err(unreadable) => reply(job, Err(Arc::new(LookupError::Unreadable(unreadable)))),
    }
    None
}

fn reply(job: Job, answer: Result<TotalsAsOf, Arc<LookupError>>) {
    // Whoever is gone by now wants no answer.
    job.reply.send(answer).ok();
}

async fn answer(state: &Arc<SharedMemory>, store: &Store, jobs: Vec<Job>) {
    if jobs.is_empty() {
        return;
    }
    let mut counters = Vec::new();
    let mut places: HashMap<Counter, usize> = HashMap::new();
    for counter in jobs.iter().flat_map(|job| &job.counters) {
        places.entry(counter.clone()).or_insert_with(|| {
            counters.push(counter.clone());
            counters.len() - 1
        });
    }
    match look_up(state, store, Wanted::Counters(&counters)).await {
        Ok(found) => {
            for job in jobs {
                let totals =
                    job.counters.iter().map(|counter| found.totals[places[counter]]).collect();
                reply(job, Ok(TotalsAsOf { totals, as_of: Arc::clone(&found.as_of) }));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            jobs.into_iter().for_each(|job| reply(job, Err(Arc::clone(&error))));
        }
    }
}

/// Takes a snapshot and makes an answer of it; again, if the snapshot is older than it may be.
pub(crate) async fn look_up(
    state: &Arc<SharedMemory>,
    store: &Store,
    wanted: Wanted<'_>,
) -> Result<TotalsAsOf, LookupError> {
    let mut tries = 1;
    loop {
        let flight = state.begin();
        let snapshot =
            store.snapshot(wanted, state.partitions()).await.map_err(LookupError::Store)?;
        match flight.finish(wanted, &snapshot) {
            Ok(answer) => return Ok(answer),
            Err(FinishError::Snapshot(SnapshotError::Behind { .. })) if tries < TRIES => {}
            Err(FinishError::Snapshot(error)) => return Err(LookupError::Snapshot(error)),
            Err(FinishError::Unreadable(unreadable)) => {
                return Err(LookupError::Unreadable(unreadable));
            }
        }
        tries += 1;
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
    }
}
