//! Commits flushes one after the other, on a thread of its own, so that the worker goes on whatever
//! a commit waits for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Error;
use crate::overdue::Overdue;
use crate::producer_rotation::{FlushJob, FlushOutcome, ProducerRotation};

pub(crate) struct Committer {
    jobs: Option<SyncSender<FlushJob>>,
    outcomes: Receiver<Result<FlushOutcome, Error>>,
    thread: Option<JoinHandle<()>>,
    overdue: Arc<Overdue>,
    in_flight: bool,
}

impl Committer {
    pub(crate) fn start(mut rotation: ProducerRotation) -> Committer {
        let (jobs, inbox) = sync_channel::<FlushJob>(1);
        let (results, outcomes) = sync_channel(1);
        let overdue = rotation.overdue();
        let thread = std::thread::Builder::new()
            .name(String::from("committer"))
            .spawn(move || {
                for job in inbox {
                    let outcome = rotation.run(&job);
                    if results.send(outcome).is_err() {
                        return;
                    }
                }
            })
            .expect("the system starts a thread");
        Committer { jobs: Some(jobs), outcomes, thread: Some(thread), overdue, in_flight: false }
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.in_flight
    }

    /// Hands a flush over.
    ///
    /// # Panics
    /// If one is in flight already.
    pub(crate) fn submit(&mut self, job: FlushJob) {
        assert!(!self.in_flight, "one flush commits at a time");
        let jobs = self.jobs.as_ref().expect("there until dropped");
        jobs.send(job).expect("the committer lives as long as its owner");
        self.in_flight = true;
    }

    /// The outcome of the flush in flight, if it is there.
    pub(crate) fn poll(&mut self) -> Option<Result<FlushOutcome, Error>> {
        match self.outcomes.try_recv() {
            Ok(outcome) => Some(self.landed(outcome)),
            Err(TryRecvError::Empty) => self.stuck(),
            Err(TryRecvError::Disconnected) => panic!("the committer panicked"),
        }
    }

    /// As [`Committer::poll`], but waits for a while.
    pub(crate) fn wait(&mut self, patience: Duration) -> Option<Result<FlushOutcome, Error>> {
        if !self.in_flight {
            return None;
        }
        match self.outcomes.recv_timeout(patience) {
            Ok(outcome) => Some(self.landed(outcome)),
            Err(RecvTimeoutError::Timeout) => self.stuck(),
            Err(RecvTimeoutError::Disconnected) => panic!("the committer panicked"),
        }
    }

    /// An error if the thread hangs in a call. It is not waited for any more: only the end of the
    /// process ends it.
    fn stuck(&mut self) -> Option<Result<FlushOutcome, Error>> {
        if !self.in_flight || !self.overdue.is_past() {
            return None;
        }
        self.thread = None;
        Some(self.landed(Err(Error::Stuck)))
    }

    fn landed(&mut self, outcome: Result<FlushOutcome, Error>) -> Result<FlushOutcome, Error> {
        self.in_flight = false;
        outcome
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that commits flushes panicked; the worker ends");
        }
    }
}
