//! Processes that outlive the command that started them.
//!
//! ```text
//! Process::start ──► pid + start time ──► (a file) ──► Identity::is_alive / Process::find ──► stop
//! ```
//!
//! A process id alone proves nothing: it is given out again after the process ends. The kernel's
//! start time (in clock ticks since boot) and the id of that boot make it unique, so nothing that
//! somebody else started is ever signalled.

use std::{
    fmt,
    fs::File,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context;
use procfs::{ProcError, process::Stat, sys::kernel::random::boot_id};
use serde::{Deserialize, Serialize};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::sys::{self, Signal};

#[cfg(test)]
mod tests;

/// How often a stopping process is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long the kernel may take to clear away a process after SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// One process of one boot of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks between the boot and the start of the process.
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl Identity {
    /// Who has this process id now; none when nobody has, or when it ended and only waits to be
    /// reaped.
    pub fn of(pid: u32) -> anyhow::Result<Option<Identity>> {
        let Some(stat) = stat(pid)? else { return Ok(None) };
        // A killed process whose first thread has ended still holds its ports until the others
        // have.
        if matches!(stat.state, 'Z' | 'X') && stat.num_threads <= 1 {
            return Ok(None);
        }
        Ok(Some(Identity { pid, start_ticks: stat.starttime, boot_id: boot_id()? }))
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> anyhow::Result<bool> {
        let found = Self::of(self.pid).with_context(|| format!("look after process {}", self.pid));
        Ok(found?.as_ref() == Some(self))
    }
}

/// None if there is no such process.
fn stat(pid: u32) -> anyhow::Result<Option<Stat>> {
    match procfs::process::Process::new(pid.cast_signed()).and_then(|process| process.stat()) {
        Ok(stat) => Ok(Some(stat)),
        Err(ProcError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A detached process: a child of this one, or one that an earlier run left behind.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    /// Only a process's parent learns its exit status. Dropping this neither kills nor forgets the
    /// child: the runtime reaps it.
    child: Option<Child>,
}

impl Process {
    /// Starts the command in a session of its own, its output in the log file (which is made anew),
    /// its input empty.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Process> {
        let out = File::create(log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(false);
        sys::in_new_session(command.as_std_mut());
        let child = command.spawn()?;
        let pid = child.id().expect("a child that was not waited for has an id");
        // It may have ended already, but nobody has reaped it, so its entry is there.
        let start_ticks = stat(pid)?.context("it is gone already")?.starttime;
        let identity = Identity { pid, start_ticks, boot_id: boot_id()? };
        Ok(Process { identity, child: Some(child) })
    }

    /// Takes up a process that an earlier run started, if it still runs.
    pub fn find(identity: &Identity) -> anyhow::Result<Option<Process>> {
        Ok(identity.is_alive()?.then(|| Process { identity: identity.clone(), child: None }))
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn liveness(&mut self) -> anyhow::Result<Liveness> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            return Ok(Liveness::Ended(Some(status)));
        }
        Ok(if self.identity.is_alive()? { Liveness::Runs } else { Liveness::Ended(None) })
    }

    /// SIGTERM, and SIGKILL once the grace is over; returns when the process is gone.
    pub async fn stop(mut self, grace: Duration) -> anyhow::Result<Ending> {
        if !matches!(self.liveness()?, Liveness::Runs) {
            return Ok(Ending::WasGone);
        }
        let begun = Instant::now();
        sys::send(Signal::Terminate, self.identity.pid)?;
        if self.gone_by(begun + grace).await? {
            return Ok(Ending::Stopped { after: begun.elapsed() });
        }
        self.kill().await?;
        Ok(Ending::Killed { after: begun.elapsed() })
    }

    /// SIGKILL at once; returns when the process is gone.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        sys::send(Signal::Kill, self.identity.pid)?;
        let is_gone = self.gone_by(Instant::now() + KILL_GRACE).await?;
        let pid = self.identity.pid;
        anyhow::ensure!(is_gone, "process {pid} is still there {KILL_GRACE:?} after SIGKILL");
        Ok(())
    }

    async fn gone_by(&mut self, deadline: Instant) -> anyhow::Result<bool> {
        loop {
            if matches!(self.liveness()?, Liveness::Ended(_)) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    Runs,
    /// The status is known of own children only.
    Ended(Option<ExitStatus>),
}

/// How a process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Stopped { after: Duration },
    Killed { after: Duration },
    WasGone,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Stopped { after } => write!(f, "stopped in {:.1} s", after.as_secs_f64()),
            Ending::Killed { after } => {
                write!(f, "killed: it did not stop within {:.0} s", after.as_secs_f64())
            }
            Ending::WasGone => write!(f, "was not running"),
        }
    }
}
