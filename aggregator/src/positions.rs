//! Where partitions are to be read from: found out on a thread of its own, because the broker does
//! not tell an offset that an open transaction could still change, and the partitions that the
//! worker has already must go on meanwhile.
//!
//! ```text
//!  worker ── want, unwant ──► wanted ──► thread ── the topic's id, partitions of deltas, committed offsets, the log's range,
//!    ▲                                     │       the last batch of each partition on deltas
//!    └──────── found ◄── of those still ◄──┘
//!              wanted, or why to stop
//! ```
//!
//! The thread also looks now and then whether the topic is still the one that was there at the
//! start.

mod finder;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rdkafka::consumer::BaseConsumer;
use tally_kafka::Membership;
use tally_platform::config::Config;

use self::finder::Finder;
use crate::Error;
use crate::core::Start;

pub(crate) struct Positions {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    tickets: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By partition. A ticket is of one request: an answer to an earlier one may be out of date.
    wanted: BTreeMap<i32, Ticket>,
    found: Vec<Start>,
    failed: Option<Error>,
    doubts_topic: bool,
    closed: bool,
}

#[derive(Clone, Copy)]
struct Ticket {
    number: u64,
    since: Instant,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The thread's panic is its owner's, who joins it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Positions {
    pub(crate) fn start(
        config: &Config,
        consumer: &Arc<BaseConsumer<Membership>>,
        topic_id: &str,
    ) -> Positions {
        let shared = Arc::new(Shared::default());
        let finder = Finder::new(config, consumer, topic_id, &shared);
        let thread = std::thread::Builder::new()
            .name(String::from("positions"))
            .spawn(move || finder.run())
            .expect("the system starts a thread");
        Positions { shared, thread: Some(thread), tickets: 0 }
    }

    pub(crate) fn want(&mut self, partitions: &[i32]) {
        let mut state = self.shared.lock();
        for partition in partitions {
            self.tickets += 1;
            state.found.retain(|found| found.partition != *partition);
            state.wanted.insert(*partition, Ticket { number: self.tickets, since: Instant::now() });
        }
        self.shared.changed.notify_one();
    }

    pub(crate) fn unwant(&self, partitions: &[i32]) {
        let mut state = self.shared.lock();
        state.wanted.retain(|partition, _| !partitions.contains(partition));
        state.found.retain(|found| !partitions.contains(&found.partition));
    }

    /// Looks at the topic's id now: a client saw a sign that it is another.
    pub(crate) fn doubt_topic(&self) {
        self.shared.lock().doubts_topic = true;
        self.shared.changed.notify_one();
    }

    /// Those found since the last call. Never waits.
    pub(crate) fn found(&mut self) -> Result<Vec<Start>, Error> {
        let mut state = self.shared.lock();
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        let found = std::mem::take(&mut state.found);
        drop(state);
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join();
        }
        Ok(found)
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the search for positions panicked");
        }
    }
}
