//! Starts every process from one thread.
//!
//! A child dies with the thread that started it (that is how the kernel does it), and a thread of
//! the runtime may end at any time; this one ends with the last process that it started.

use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::{io, iter};

struct SpawnRequest {
    command: Arc<Mutex<Command>>,
    child: SyncSender<io::Result<Child>>,
}

/// Clones share the thread.
#[derive(Clone)]
pub(super) struct Spawner(Arc<Thread>);

struct Thread {
    births: Option<SyncSender<SpawnRequest>>,
    handle: Option<JoinHandle<()>>,
}

impl Spawner {
    pub(super) fn new() -> io::Result<Spawner> {
        let (births, wanted) = sync_channel(0);
        let handle = thread::Builder::new().name(String::from("spawner")).spawn(|| serve(wanted));
        Ok(Spawner(Arc::new(Thread { births: Some(births), handle: Some(handle?) })))
    }

    /// Blocks for as long as the system takes to start a process.
    pub(super) fn spawn(&self, command: &Arc<Mutex<Command>>) -> io::Result<Child> {
        let (child, born) = sync_channel(1);
        let birth = SpawnRequest { command: Arc::clone(command), child };
        let births = self.0.births.as_ref().expect("it is there until dropped");
        births.send(birth).map_err(io::Error::other)?;
        born.recv().map_err(io::Error::other)?
    }
}

fn serve(wanted: Receiver<SpawnRequest>) {
    for SpawnRequest { command, child } in iter::from_fn(|| wanted.recv().ok()) {
        let born = command.lock().unwrap_or_else(PoisonError::into_inner).spawn();
        if let Err(unwanted) = child.send(born) {
            tracing::warn!(process = ?unwanted.0, "nobody waits for this process any more");
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.births = None;
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::warn!("the thread that starts processes panicked");
        }
    }
}
