//! Whether a call into librdkafka has not come back, long after the time that it was given.
//!
//! A request to a group's coordinator waits for one to be found, and librdkafka looks for it again
//! only when a connection comes or goes. If none does, the call that sent it never returns,
//! whatever its timeout (`rd_kafka_coord_req_fsm`, librdkafka 2.12).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Set by the thread that calls, looked at by another.
#[derive(Debug, Default)]
pub(crate) struct Overdue(Mutex<Option<Instant>>);

impl Overdue {
    /// What begins now comes back within this time.
    pub(crate) fn within(&self, time: Duration) {
        self.set(Some(Instant::now() + time));
    }

    /// Nothing is called.
    pub(crate) fn rest(&self) {
        self.set(None);
    }

    pub(crate) fn is_past(&self) -> bool {
        let due = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        due.is_some_and(|due| Instant::now() > due)
    }

    fn set(&self, due: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = due;
    }
}
