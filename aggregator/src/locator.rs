//! Finds the offset to read a partition from, on a thread of its own: the broker does not tell an
//! offset that an open transaction could still change, and the partitions that the worker has
//! already must go on meanwhile.
//!
//! ```text
//!  worker ── locate, give_up ──► requests ──► thread ── the topic's id, partitions of deltas,
//!    ▲                                          │       committed offsets, the log's range,
//!    │                                          │       the last delta batch of each partition
//!    └── answers: resume points, each with ◄────┘
//!        the ticket of its request; why a partition
//!        has none; or why the worker must stop
//! ```
//!
//! The thread also looks now and then whether the topic is still the one that was there at the
//! start.

mod lineage;
mod search;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rdkafka::consumer::BaseConsumer;
use tally_kafka::Membership;
use tally_platform::config::Config;
use tokio::runtime::Handle;

use self::search::Search;
use crate::Error;
use crate::last_batches::OwnSchema;
use crate::partition_error::PartitionError;
use crate::partitions::{ResumePoint, Ticket};

pub(crate) struct Locator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

#[derive(Default)]
struct Inbox {
    /// What the worker asked for last, by partition, and has no answer to.
    requests: BTreeMap<i32, Request>,
    answers: Vec<Answer>,
    failed: Option<Error>,
    doubts_topic: bool,
    closed: bool,
}

/// What the locator says to a request.
pub(crate) struct Answer {
    pub(crate) partition: i32,
    pub(crate) ticket: Ticket,
    /// Where to read from, or why the partition cannot be read.
    pub(crate) point: Result<ResumePoint, PartitionError>,
}

#[derive(Clone, Copy)]
struct Request {
    ticket: Ticket,
    since: Instant,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // The thread's panic is its owner's, who joins it.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Locator {
    pub(crate) fn start(
        config: &Config,
        own_schema: OwnSchema,
        consumer: &Arc<BaseConsumer<Membership>>,
        topic_id: &str,
        runtime: &Handle,
    ) -> Result<Locator, Error> {
        let shared = Arc::new(Shared::default());
        let search = Search::new(config, own_schema, consumer, topic_id, &shared, runtime)?;
        let thread = std::thread::Builder::new()
            .name(String::from("locator"))
            .spawn(move || search.run())
            .expect("the system starts a thread");
        Ok(Locator { shared, thread: Some(thread) })
    }

    /// Asks for these partitions' resume points, all of which one search looks for. An answer to an
    /// earlier request, which may be out of date, can still come, with that request's ticket.
    pub(crate) fn locate(&self, partitions: &[(i32, Ticket)]) {
        if partitions.is_empty() {
            return;
        }
        let since = Instant::now();
        let request = |(partition, ticket): &(i32, Ticket)| {
            let ticket = *ticket;
            (*partition, Request { ticket, since })
        };
        self.shared.lock().requests.extend(partitions.iter().map(request));
        self.shared.changed.notify_one();
    }

    /// Asks for this partition no more.
    pub(crate) fn give_up(&self, partition: i32) {
        self.shared.lock().requests.remove(&partition);
    }

    /// Looks at the topic's id now: a client saw a sign that it is another.
    pub(crate) fn doubt_topic(&self) {
        self.shared.lock().doubts_topic = true;
        self.shared.changed.notify_one();
    }

    /// The answers since the last call. Never waits.
    pub(crate) fn answers(&mut self) -> Result<Vec<Answer>, Error> {
        let mut inbox = self.shared.lock();
        if let Some(error) = inbox.failed.take() {
            return Err(error);
        }
        let answers = std::mem::take(&mut inbox.answers);
        drop(inbox);
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join();
        }
        Ok(answers)
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Locator {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that locates partitions panicked; the worker ends");
        }
    }
}
