//! Data for `input(…)` as a file that the engine can open: anonymous memory, named through `/proc`.
//!
//! ```text
//!  body ──► memfd ◄──mmap── file('/proc/self/fd/N', …)
//! ```
//!
//! The engine maps the pages that were written here: the data is copied once, touches no disk, and
//! is gone with the last reference to it, however the process ends.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
};

use rustix::fs::{MemfdFlags, memfd_create};

pub(crate) struct Spool {
    file: File,
}

impl Spool {
    pub(crate) fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("tally-input", MemfdFlags::CLOEXEC)?);
        Ok(Self { file })
    }

    /// The path by which this process, and no other, can open the data.
    pub(crate) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }
}

impl Write for Spool {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
