//! Whether a service lives, and whether it is ready.
//!
//! ```text
//! conditions (Condition::set)  ──► Health ──► /readyz   200 once every one holds
//! heartbeats (Heartbeat::beat) ──►   │    ──► /livez    200 while none is silent for too long
//!               prometheus::Registry ┴──────► /metrics
//! ```
//!
//! Readiness is about the work (partitions assigned, log reachable) and changes back and forth.
//! Liveness is about the process: a loop that has stopped beating will not get going again by
//! itself.

mod server;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use server::{routes, serve};

/// What a service tells about itself; clones tell of the same service.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Heartbeats are measured from here.
    origin: Instant,
    conditions: Mutex<Vec<Arc<ConditionState>>>,
    ends: AtomicBool,
    heartbeats: Mutex<Vec<Arc<HeartbeatState>>>,
}

#[derive(Debug)]
struct ConditionState {
    name: String,
    /// Why it does not hold, unless it does.
    verdict: Mutex<Result<(), String>>,
}

#[derive(Debug)]
struct HeartbeatState {
    name: String,
    max_silence: Duration,
    /// Milliseconds from the origin to the last beat.
    last_ms: AtomicU64,
}

impl Default for Health {
    fn default() -> Health {
        Health::new()
    }
}

impl Health {
    pub fn new() -> Health {
        let inner = Inner {
            origin: Instant::now(),
            conditions: Mutex::default(),
            ends: AtomicBool::new(false),
            heartbeats: Mutex::default(),
        };
        Health { inner: Arc::new(inner) }
    }

    /// Declares something that must hold for the service to be ready. It does not hold until it is
    /// set, and stays declared.
    ///
    /// A service without any condition is never ready.
    pub fn condition(&self, name: impl Into<String>) -> Condition {
        let verdict = Mutex::new(Err("not yet".to_owned()));
        let state = Arc::new(ConditionState { name: name.into(), verdict });
        locked(&self.inner.conditions).push(Arc::clone(&state));
        Condition { state }
    }

    /// Declares a loop that beats at least once in each `max_silence`, from now on.
    pub fn heartbeat(&self, name: impl Into<String>, max_silence: Duration) -> Heartbeat {
        let last_ms = AtomicU64::new(self.inner.elapsed_ms());
        let state = Arc::new(HeartbeatState { name: name.into(), max_silence, last_ms });
        locked(&self.inner.heartbeats).push(Arc::clone(&state));
        Heartbeat { health: Arc::clone(&self.inner), state }
    }

    /// From now on the service is not ready, whatever holds: it is about to end.
    pub fn end(&self) {
        self.inner.ends.store(true, Ordering::Relaxed);
    }

    /// Ready, or a line for each condition that does not hold.
    pub fn ready(&self) -> Result<(), String> {
        if self.inner.ends.load(Ordering::Relaxed) {
            return Err("the service was asked to end".to_owned());
        }
        let conditions = locked(&self.inner.conditions);
        if conditions.is_empty() {
            return Err("no condition is declared yet".to_owned());
        }
        let failed: Vec<String> = conditions
            .iter()
            .filter_map(|state| {
                let verdict = locked(&state.verdict);
                verdict.as_ref().err().map(|reason| format!("{}: {reason}", state.name))
            })
            .collect();
        all_or(failed)
    }

    /// Alive, or a line for each loop that was silent for too long.
    pub fn alive(&self) -> Result<(), String> {
        self.alive_after(self.inner.elapsed_ms())
    }

    fn alive_after(&self, now_ms: u64) -> Result<(), String> {
        let silent: Vec<String> = locked(&self.inner.heartbeats)
            .iter()
            .filter_map(|state| {
                let silence = Duration::from_millis(
                    now_ms.saturating_sub(state.last_ms.load(Ordering::Relaxed)),
                );
                (silence > state.max_silence).then(|| {
                    format!(
                        "{}: silent for {silence:?}, at most {:?} expected",
                        state.name, state.max_silence
                    )
                })
            })
            .collect();
        all_or(silent)
    }
}

impl Inner {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis())
            .expect("a process runs for less than 584 million years")
    }
}

/// Something that must hold for the service to be ready.
#[derive(Debug)]
pub struct Condition {
    state: Arc<ConditionState>,
}

impl Condition {
    /// `detail` is the reason that `/readyz` gives while the condition does not hold.
    pub fn set(&self, holds: bool, detail: impl Into<String>) {
        let verdict = if holds { Ok(()) } else { Err(detail.into()) };
        *locked(&self.state.verdict) = verdict;
    }
}

/// A loop's sign of life. When it is dropped the loop has ended and is expected to beat no more,
/// unless it ended by a panic.
#[derive(Debug)]
pub struct Heartbeat {
    health: Arc<Inner>,
    state: Arc<HeartbeatState>,
}

impl Heartbeat {
    /// A clock reading and an atomic store: cheap enough for each turn of a hot loop.
    pub fn beat(&self) {
        self.state.last_ms.store(self.health.elapsed_ms(), Ordering::Relaxed);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            locked(&self.health.heartbeats).retain(|state| !Arc::ptr_eq(state, &self.state));
        }
    }
}

fn all_or(failed: Vec<String>) -> Result<(), String> {
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

/// What the locks guard is whole after each statement, so a panic elsewhere does not spoil it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
