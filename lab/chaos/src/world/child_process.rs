//! One process under one name, started again and again; its log goes on.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tally_stack::sys::{self, Signal};
use tally_wall_clock::WallClock;
use tokio::time::sleep;

use super::spawner::Spawner;

#[cfg(test)]
mod tests;

const LOOK: Duration = Duration::from_millis(5);
/// How long the kernel may take to clear away a process after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(20);
/// How much of a log's last line is shown.
const SHOWN_CHARS: usize = 300;

/// It is killed when dropped.
pub(crate) struct ChildProcess {
    name: String,
    log: PathBuf,
    /// They take turns: each start is of the next one.
    commands: Vec<Arc<Mutex<Command>>>,
    starts: AtomicUsize,
    spawner: Spawner,
    clock: Option<WallClock>,
    child: Mutex<Option<Child>>,
}

impl ChildProcess {
    /// Starts nothing yet. Standard output and error go to the log. It has the machine's clock if
    /// it is given none.
    pub(super) fn new(
        name: &str,
        mut commands: Vec<Command>,
        log: PathBuf,
        spawner: &Spawner,
        clock: Option<WallClock>,
    ) -> anyhow::Result<ChildProcess> {
        let out = OpenOptions::new().create(true).append(true).open(&log);
        let out = out.with_context(|| format!("open {}", log.display()))?;
        for command in &mut commands {
            command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out.try_clone()?);
            // Ctrl-C is for the harness, which then ends them.
            sys::in_new_session(command);
            sys::ends_with_parent(command);
            if let Some(clock) = &clock {
                command.envs(clock.environment());
            }
        }
        Ok(ChildProcess {
            name: name.to_owned(),
            log,
            commands: commands.into_iter().map(|command| Arc::new(Mutex::new(command))).collect(),
            starts: AtomicUsize::new(0),
            spawner: spawner.clone(),
            clock,
            child: Mutex::new(None),
        })
    }

    /// None if it has the machine's.
    pub(crate) fn clock(&self) -> Option<&WallClock> {
        self.clock.as_ref()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let mut child = self.child();
        if let Some(child) = &mut *child {
            ensure!(self.status(child)?.is_some(), "start {}: it runs already", self.name);
        }
        let turn = self.starts.fetch_add(1, Ordering::Relaxed) % self.commands.len();
        let born = self.spawner.spawn(&self.commands[turn]);
        *child = Some(born.with_context(|| format!("start {}", self.name))?);
        Ok(())
    }

    /// None while it runs.
    pub(crate) fn has_ended(&self) -> anyhow::Result<Option<ExitStatus>> {
        match &mut *self.child() {
            Some(child) => self.status(child),
            None => bail!("look after {}: it does not run", self.name),
        }
    }

    /// The id of the last one that was started.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Sends the signal; says whether the process ran, and so was told.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<bool> {
        let mut child = self.child();
        let Some(child) = &mut *child else { return Ok(false) };
        // The id stays its own until it is waited for, which happens only here, behind the lock.
        if self.status(child)?.is_some() {
            return Ok(false);
        }
        sys::send(signal, child.id()).with_context(|| format!("signal {}", self.name))?;
        Ok(true)
    }

    /// SIGKILL; blocks for the moment that its end takes. Whether it ran until then: one that ended
    /// by itself just before was not killed.
    pub(crate) fn kill(&self) -> anyhow::Result<bool> {
        if !self.signal(Signal::Kill)? {
            return Ok(false);
        }
        match &mut *self.child() {
            Some(child) => Ok(was_killed(child.wait()?)),
            None => Ok(false),
        }
    }

    /// As [`ChildProcess::kill`] for a large process, whose end takes longer.
    pub(crate) async fn kill_and_wait(&self) -> anyhow::Result<bool> {
        if !self.signal(Signal::Kill)? {
            return Ok(false);
        }
        let ended = self.ended(KILL_PATIENCE).await?;
        Ok(was_killed(ended.with_context(|| format!("{} outlives SIGKILL", self.name))?))
    }

    /// Waits until it has ended; none if it still runs after that time.
    pub(crate) async fn ended(&self, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let began = Instant::now();
        loop {
            let status = self.has_ended()?;
            if status.is_some() || began.elapsed() >= patience {
                return Ok(status);
            }
            sleep(LOOK).await;
        }
    }

    /// Asks until it answers; not longer than it lives.
    pub(crate) async fn answers<R: ToString>(
        &self,
        patience: Duration,
        mut ask: impl AsyncFnMut() -> Result<(), R>,
    ) -> anyhow::Result<()> {
        let (began, name) = (Instant::now(), &self.name);
        loop {
            let answer = ask().await;
            // Looked at after the answer: what answered may be a stranger that took the port as
            // this one died of it.
            if let Some(status) = self.has_ended()? {
                bail!("{name} ended ({status}) before it answered: {}", self.last_words()?);
            }
            match answer {
                Ok(()) => return Ok(()),
                Err(reason) if began.elapsed() >= patience => {
                    let reason = reason.to_string();
                    bail!("{name} has not answered within {patience:?}: {reason}");
                }
                Err(_) => sleep(LOOK * 10).await,
            }
        }
    }

    /// The last line of its log.
    pub(crate) fn last_words(&self) -> anyhow::Result<String> {
        let text = tally_stack::log_end(&self.log);
        let text = text.with_context(|| format!("read {}", self.log.display()))?;
        let line = text.lines().rev().find(|line| !line.trim().is_empty());
        Ok(line.unwrap_or("(nothing)").chars().take(SHOWN_CHARS).collect())
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self, child: &mut Child) -> anyhow::Result<Option<ExitStatus>> {
        child.try_wait().with_context(|| format!("look after {}", self.name))
    }
}

fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGKILL)
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(error = format!("{error:#}"), "end a process");
        }
    }
}
