//! Data for `input(…)` as a file that the engine can open: anonymous memory, named through `/proc`.
//!
//! ```text
//!  body ──► memfd ◄──mmap── file('/proc/self/fd/N', …)
//! ```
//!
//! The engine maps the pages that were written here: the data is copied once, touches no disk, and
//! is gone with the last reference to it, however the process ends.

use std::{fs::File, io, os::fd::AsRawFd};

use rustix::fs::{MemfdFlags, memfd_create};

pub(crate) struct Spool(pub(crate) File);

impl Spool {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(memfd_create("tally-input", MemfdFlags::CLOEXEC)?.into()))
    }

    /// The path by which this process, and no other, can open the data.
    pub(crate) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}
