//! The system calls that the standard library does not offer.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Asks a child that was not waited for yet to end.
pub(crate) fn terminate(child: &Child) -> io::Result<()> {
    signal(child, libc::SIGTERM)
}

/// Stops a child that was not waited for yet in the middle of what it does.
pub(crate) fn freeze(child: &Child) -> io::Result<()> {
    signal(child, libc::SIGSTOP)
}

/// Lets a frozen child go on.
pub(crate) fn thaw(child: &Child) -> io::Result<()> {
    signal(child, libc::SIGCONT)
}

fn signal(child: &Child, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(child.id()).expect("a process id is positive and fits");
    // SAFETY: kill takes two integers and touches no memory of ours. The child was not waited for,
    // so the id is still its own.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends another process at once, as its owner would with `kill -9`.
pub(crate) fn kill(pid: u32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid)
        .ok()
        .filter(|&pid| pid > 0)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: as above; the id is positive, so one process is meant and not a group.
    if unsafe { libc::kill(pid, libc::SIGKILL) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has `handler` called when the process exits, whether the tests passed or failed.
pub(crate) fn at_exit(handler: extern "C" fn()) {
    // SAFETY: the handler is a plain function that lives as long as the program.
    let refused = unsafe { libc::atexit(handler) };
    assert_eq!(refused, 0, "the C library has room for another exit handler");
}

/// Has the kernel end the child when the thread that starts it ends, in whatever way: a test
/// process that is killed leaves no service behind. A test starts its services from its own thread,
/// and drops them before that ends.
pub(crate) fn ends_with_its_test(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: the hook runs between fork and exec in the child, where only async-signal-safe calls
    // are allowed. prctl and getppid are plain system calls, and neither error allocates.
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
