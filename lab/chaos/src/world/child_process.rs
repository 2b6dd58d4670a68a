//! One process under one name, started again and again; its log goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tally_stack::sys::{self, Signal};
use tokio::time::sleep;

use super::Error;
use super::spawner::Spawner;

#[cfg(test)]
mod tests;

const LOOK: Duration = Duration::from_millis(5);
/// How long the kernel may take to clear away a process after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(20);
/// How much of a log's end holds its last line, and how much of that is shown.
const TAIL_BYTES: u64 = 16 << 10;
const SHOWN_CHARS: usize = 300;

/// It is killed when dropped.
pub(super) struct ChildProcess {
    name: String,
    log: PathBuf,
    command: Arc<Mutex<Command>>,
    spawner: Spawner,
    child: Mutex<Option<Child>>,
}

impl ChildProcess {
    /// Starts nothing yet. Standard output and error go to the log.
    pub(super) fn new(
        name: &str,
        mut command: Command,
        log: PathBuf,
        spawner: &Spawner,
    ) -> Result<ChildProcess, Error> {
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::file("open", &log))?;
        let errors = out.try_clone().map_err(Error::file("open", &log))?;
        command.stdin(Stdio::null()).stdout(out).stderr(errors);
        // Ctrl-C is for the harness, which then ends them.
        sys::in_new_session(&mut command);
        sys::ends_with_parent(&mut command);
        let command = Arc::new(Mutex::new(command));
        Ok(ChildProcess {
            name: name.to_owned(),
            log,
            command,
            spawner: spawner.clone(),
            child: Mutex::new(None),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    pub(super) fn start(&self) -> Result<(), Error> {
        let mut child = self.child();
        if let Some(child) = &mut *child
            && self.status(child)?.is_none()
        {
            return Err(Error::Runs { name: self.name.clone() });
        }
        let born = self.spawner.spawn(&self.command);
        *child = Some(born.map_err(|source| Error::Start { name: self.name.clone(), source })?);
        Ok(())
    }

    /// None while it runs.
    pub(super) fn has_ended(&self) -> Result<Option<ExitStatus>, Error> {
        match &mut *self.child() {
            Some(child) => self.status(child),
            None => Err(Error::Gone { action: "look after", name: self.name.clone() }),
        }
    }

    #[cfg(test)]
    pub(super) fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Sends the signal; says whether the process ran, and so was told.
    pub(super) fn signal(&self, signal: Signal) -> Result<bool, Error> {
        let mut child = self.child();
        let Some(child) = &mut *child else { return Ok(false) };
        // The id stays its own until it is waited for, which happens only here, behind the lock.
        if self.status(child)?.is_some() {
            return Ok(false);
        }
        sys::send(signal, child.id()).map_err(self.failed("signal"))?;
        Ok(true)
    }

    /// SIGKILL; blocks for the moment that its end takes. Whether it ran until then: one that ended
    /// by itself just before was not killed.
    pub(super) fn kill(&self) -> Result<bool, Error> {
        if !self.signal(Signal::Kill)? {
            return Ok(false);
        }
        match &mut *self.child() {
            Some(child) => Ok(was_killed(child.wait().map_err(self.failed("wait for"))?)),
            None => Ok(false),
        }
    }

    /// As [`ChildProcess::kill`] for a large process, whose end takes longer.
    pub(super) async fn kill_and_wait(&self) -> Result<bool, Error> {
        Ok(self.signal(Signal::Kill)? && was_killed(self.ended(KILL_PATIENCE).await?))
    }

    /// SIGTERM, and its status when it has ended; none if it did not run.
    pub(super) async fn terminate(&self, patience: Duration) -> Result<Option<ExitStatus>, Error> {
        if self.signal(Signal::Terminate)? {
            Ok(Some(self.ended(patience).await?))
        } else {
            Ok(None)
        }
    }

    async fn ended(&self, patience: Duration) -> Result<ExitStatus, Error> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.has_ended()? {
                return Ok(status);
            }
            if began.elapsed() >= patience {
                return Err(Error::Lingers { name: self.name.clone(), patience });
            }
            sleep(LOOK).await;
        }
    }

    /// Asks until it answers; not longer than it lives.
    pub(super) async fn answers<R: ToString>(
        &self,
        patience: Duration,
        mut ask: impl AsyncFnMut() -> Result<(), R>,
    ) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            let answer = ask().await;
            // Looked at after the answer: what answered may be a stranger that took the port as
            // this one died of it.
            if let Some(status) = self.has_ended()? {
                let (name, last_words) = (self.name.clone(), self.last_words()?);
                return Err(Error::Died { name, status, last_words });
            }
            match answer {
                Ok(()) => return Ok(()),
                Err(reason) if began.elapsed() >= patience => {
                    let (name, reason) = (self.name.clone(), reason.to_string());
                    return Err(Error::Silent { name, patience, reason });
                }
                Err(_) => sleep(LOOK * 10).await,
            }
        }
    }

    /// The last line of its log.
    pub(super) fn last_words(&self) -> Result<String, Error> {
        let tail = tail(&self.log).map_err(Error::file("read", &self.log))?;
        let text = String::from_utf8_lossy(&tail);
        let line = text.lines().rev().find(|line| !line.trim().is_empty());
        Ok(line.map_or_else(
            || String::from("(nothing)"),
            |line| line.chars().take(SHOWN_CHARS).collect(),
        ))
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self, child: &mut Child) -> Result<Option<ExitStatus>, Error> {
        child.try_wait().map_err(self.failed("look after"))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        let name = self.name.clone();
        move |source| Error::Process { action, name, source }
    }
}

fn tail(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGKILL)
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "end a process");
        }
    }
}
