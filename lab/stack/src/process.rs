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
    fmt, fs,
    fs::File,
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

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
    pub fn of(pid: u32) -> io::Result<Option<Identity>> {
        let Some(Stat { state, threads, start_ticks }) = Stat::read(pid)? else { return Ok(None) };
        // A killed process whose first thread has ended still holds its ports until the others
        // have.
        if matches!(state, 'Z' | 'X') && threads <= 1 {
            return Ok(None);
        }
        Ok(Some(Identity { pid, start_ticks, boot_id: boot_id()? }))
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(Self::of(self.pid)?.as_ref() == Some(self))
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

struct Stat {
    state: char,
    threads: u64,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Option<Stat>> {
        let line = match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(line) => line,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // The process ended between the open and the read.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        let stat = Stat::parse(&line).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat is not understood: {line:?}"),
            )
        })?;
        Ok(Some(stat))
    }

    /// The fields follow the command's name, which stands in parentheses and may hold spaces and
    /// parentheses itself.
    fn parse(line: &str) -> Option<Stat> {
        let (_, fields) = line.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        // proc_pid_stat(5): state is field 3, the number of threads field 20, the start time field
        // 22.
        let threads = fields.nth(20 - 4)?.parse().ok()?;
        let start_ticks = fields.nth(22 - 21)?.parse().ok()?;
        Some(Stat { state, threads, start_ticks })
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
    pub fn start(mut command: Command, log: &Path) -> io::Result<Process> {
        let out = File::create(log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(false);
        sys::in_new_session(command.as_std_mut());
        let child = command.spawn()?;
        let pid = child.id().expect("a child that was not waited for has an id");
        // It may have ended already, but nobody has reaped it, so its entry is there.
        let Stat { start_ticks, .. } = Stat::read(pid)?.ok_or(io::ErrorKind::NotFound)?;
        let identity = Identity { pid, start_ticks, boot_id: boot_id()? };
        Ok(Process { identity, child: Some(child) })
    }

    /// Takes up a process that an earlier run started, if it still runs.
    pub fn find(identity: &Identity) -> io::Result<Option<Process>> {
        Ok(identity.is_alive()?.then(|| Process { identity: identity.clone(), child: None }))
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn liveness(&mut self) -> io::Result<Liveness> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            return Ok(Liveness::Ended(Some(status)));
        }
        Ok(if self.identity.is_alive()? { Liveness::Runs } else { Liveness::Ended(None) })
    }

    /// SIGTERM, and SIGKILL once the grace is over; returns when the process is gone.
    pub async fn stop(mut self, grace: Duration) -> io::Result<Ending> {
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
    pub async fn kill(mut self) -> io::Result<()> {
        sys::send(Signal::Kill, self.identity.pid)?;
        if self.gone_by(Instant::now() + KILL_GRACE).await? {
            return Ok(());
        }
        let pid = self.identity.pid;
        let reason = format!("process {pid} is still there {KILL_GRACE:?} after SIGKILL");
        Err(io::Error::new(io::ErrorKind::TimedOut, reason))
    }

    async fn gone_by(&mut self, deadline: Instant) -> io::Result<bool> {
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
