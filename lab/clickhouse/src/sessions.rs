//! Sessions by id: the connection that a `session_id` keeps between calls.
//!
//! ```text
//!  lease(id) ──► Lease (nobody else gets it) ──keep──► idle until its timeout ──► closed
//!                      └──dropped──► the session is over
//! ```
//!
//! Nothing here knows the time: callers say what time it is.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::exception::{Exception, exception};

/// An idle session holds some memory, so that there may not be any number of them.
const MAX_SESSIONS: usize = 1000;

/// `C` is the connection.
pub(crate) struct Sessions<C> {
    states: Mutex<HashMap<String, SessionState<C>>>,
}

enum SessionState<C> {
    Leased,
    Idle { connection: C, until: Instant },
}

/// A session in use by one call.
pub(crate) struct Lease<'a, C> {
    sessions: &'a Sessions<C>,
    id: String,
    connection: Option<C>,
}

impl<C> Sessions<C> {
    pub(crate) fn new() -> Self {
        Self { states: Mutex::new(HashMap::new()) }
    }

    /// Takes the session, or begins it with what `connect` gives.
    pub(crate) fn lease(
        &self,
        id: &str,
        must_exist: bool,
        now: Instant,
        connect: impl FnOnce() -> Result<C, Exception>,
    ) -> Result<Lease<'_, C>, Exception> {
        let mut states = self.states();
        states
            .retain(|_, state| !matches!(state, SessionState::Idle { until, .. } if *until <= now));
        let connection = match states.remove(id) {
            Some(SessionState::Idle { connection, .. }) => connection,
            Some(SessionState::Leased) => {
                states.insert(id.to_owned(), SessionState::Leased);
                return Err(exception!(
                    SESSION_IS_LOCKED,
                    "Session {id} is locked by a concurrent client"
                ));
            }
            None if must_exist => {
                return Err(exception!(SESSION_NOT_FOUND, "Session {id} is not found"));
            }
            None if states.len() >= MAX_SESSIONS => {
                return Err(exception!(
                    TOO_MANY_SIMULTANEOUS_QUERIES,
                    "There are {MAX_SESSIONS} sessions already"
                ));
            }
            None => connect()?,
        };
        states.insert(id.to_owned(), SessionState::Leased);
        Ok(Lease { sessions: self, id: id.to_owned(), connection: Some(connection) })
    }

    /// Ends every session that is idle.
    pub(crate) fn clear(&self) {
        self.states().clear();
    }

    fn states(&self) -> MutexGuard<'_, HashMap<String, SessionState<C>>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Lease<'_, C> {
    pub(crate) fn connection(&mut self) -> &mut C {
        self.connection.as_mut().expect("a lease holds its connection until it is kept")
    }

    /// Gives the session back, for `timeout` from `now` on.
    pub(crate) fn keep(mut self, now: Instant, timeout: Duration) {
        if let Some(connection) = self.connection.take() {
            self.sessions
                .states()
                .insert(self.id.clone(), SessionState::Idle { connection, until: now + timeout });
        }
    }
}

impl<C> Drop for Lease<'_, C> {
    fn drop(&mut self) {
        if self.connection.is_some() {
            self.sessions.states().remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn lease(
        sessions: &Sessions<u8>,
        must_exist: bool,
        now: Instant,
    ) -> Result<Lease<'_, u8>, u32> {
        sessions.lease("s", must_exist, now, || Ok(0)).map_err(|exception| exception.code())
    }

    fn counted(sessions: &Sessions<u8>, now: Instant) -> u8 {
        let mut lease = lease(sessions, false, now).unwrap();
        *lease.connection() += 1;
        let count = *lease.connection();
        lease.keep(now, MINUTE);
        count
    }

    #[test]
    fn a_kept_session_goes_on_until_its_timeout() {
        let (sessions, start) = (Sessions::new(), Instant::now());
        assert_eq!(counted(&sessions, start), 1);
        assert_eq!(counted(&sessions, start + MINUTE / 2), 2);
        assert_eq!(counted(&sessions, start + MINUTE), 3);
        assert_eq!(counted(&sessions, start + MINUTE * 2), 1);
    }

    #[test]
    fn a_leased_session_is_locked_and_stays_so() {
        let (sessions, now) = (Sessions::new(), Instant::now());
        let held = lease(&sessions, false, now).unwrap();
        assert_eq!(lease(&sessions, false, now + MINUTE * 99).err(), Some(373));
        assert_eq!(lease(&sessions, true, now).err(), Some(373));
        held.keep(now, MINUTE);
        assert!(lease(&sessions, true, now).is_ok());
    }

    #[test]
    fn a_dropped_lease_ends_the_session() {
        let (sessions, now) = (Sessions::new(), Instant::now());
        drop(lease(&sessions, false, now).unwrap());
        assert_eq!(lease(&sessions, true, now).err(), Some(372));
    }

    #[test]
    fn the_number_of_sessions_is_bounded() {
        let (sessions, now) = (Sessions::new(), Instant::now());
        for id in 0..MAX_SESSIONS {
            let lease = sessions.lease(&id.to_string(), false, now, || Ok(0)).unwrap();
            lease.keep(now, MINUTE);
        }
        assert_eq!(lease(&sessions, false, now).err(), Some(202));
        assert!(lease(&sessions, false, now + MINUTE).is_ok());
    }
}
