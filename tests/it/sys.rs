//! The system calls that the standard library does not offer.

use std::io;
use std::process::Child;

use tally_stack::sys::{Signal, send};

/// Asks a child that was not waited for yet to end.
pub(crate) fn terminate(child: &Child) -> io::Result<()> {
    send(Signal::Terminate, child.id())
}

/// Stops a child that was not waited for yet in the middle of what it does.
pub(crate) fn freeze(child: &Child) -> io::Result<()> {
    send(Signal::Stop, child.id())
}

/// Lets a frozen child go on.
pub(crate) fn thaw(child: &Child) -> io::Result<()> {
    send(Signal::Continue, child.id())
}

/// Ends another process at once, as its owner would with `kill -9`; an error if it is gone already.
pub(crate) fn kill(pid: u32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid)
        .ok()
        .filter(|&pid| pid > 0)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes two integers and touches no memory of ours. The id is positive, so one
    // process is meant and not a group.
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
