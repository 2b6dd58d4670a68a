//! The few system calls that the standard library does not offer in a stable form.

use std::{io, os::unix::process::CommandExt, process::Command};

/// Makes the child the leader of a session of its own, so that neither the end of this process nor
/// Ctrl-C in its terminal reaches it.
pub fn in_new_session(command: &mut Command) {
    // SAFETY: the hook runs between fork and exec in the child, where only async-signal-safe calls
    // are allowed. setsid is one, and reading errno allocates nothing.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}

/// Has the kernel end the child when the thread that starts it ends, and so when this process ends
/// in whatever way. The child keeps that when it executes another program.
pub fn ends_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: as above; prctl and getppid are plain system calls, and neither error allocates.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
                return Err(io::Error::last_os_error());
            }
            // It may have ended before the call, in which case no signal comes.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Kill,
    /// Stops it where it is, until it is told to continue.
    Stop,
    Continue,
}

/// Sends the signal; a process that is gone already is no error.
pub fn send(signal: Signal, pid: u32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is not a process id"))
    })?;
    let number = match signal {
        Signal::Terminate => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    // SAFETY: kill takes two integers and touches no memory of ours. The id is positive: zero and
    // negative ids would mean whole groups.
    if unsafe { libc::kill(pid, number) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}
