//! A wall clock for one process that can be stepped, as an operator or NTP steps the machine's. The
//! machine's own clock is left alone, and so is the process's monotonic clock.
//!
//! ```text
//! WallClock::set_ahead ──► a file ──► shim.c, preloaded into the process: what time it sees
//! WallClock::reads ◄────── a file ◄── how often it saw one that is not the machine's
//! ```
//!
//! Linux with glibc alone, and the C compiler that Rust links with.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

#[cfg(test)]
mod tests;

/// Bytes of each of the two numbers in the file.
const NUMBER: usize = size_of::<i64>();
const SOURCE: &str = include_str!("shim.c");

/// Makes clocks, each a file beside the library that is preloaded.
#[derive(Clone, Debug)]
pub struct WallClocks {
    folder: PathBuf,
    library: PathBuf,
}

impl WallClocks {
    /// Compiles it into this folder; blocks for half a second. An error says what is missing.
    pub fn new(folder: PathBuf) -> anyhow::Result<WallClocks> {
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let (source, library) = (folder.join("shim.c"), folder.join("libwallclock.so"));
        fs::write(&source, SOURCE).with_context(|| format!("write {}", source.display()))?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-o"]).args([&library, &source]);
        let output = compiler.output().context("start cc: is a C compiler installed (gcc)?")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cc compiled no clock: {said}");
        Ok(WallClocks { folder, library })
    }

    /// The clock of the process of this name.
    pub fn of(&self, name: &str) -> anyhow::Result<WallClock> {
        let path = self.folder.join(name.replace(' ', "-"));
        let open = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = open.with_context(|| format!("make {}", path.display()))?;
        file.set_len(2 * NUMBER as u64)?;
        Ok(WallClock { library: self.library.clone(), path, file })
    }
}

/// The clock of one process, over its restarts too; at first the machine's.
#[derive(Debug)]
pub struct WallClock {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl WallClock {
    /// The environment of a process that sees this clock.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.library), ("TALLY_WALL_CLOCK", &self.path)]
    }

    /// From now on it is so many nanoseconds ahead of the machine's, or behind if negative.
    pub fn set_ahead(&self, nanoseconds: i64) -> anyhow::Result<()> {
        let written = self.file.write_all_at(&nanoseconds.to_ne_bytes(), 0);
        written.with_context(|| format!("write {}", self.path.display()))
    }

    /// How often the process has looked at the clock while it was not the machine's.
    pub fn reads(&self) -> anyhow::Result<i64> {
        let mut count = [0; NUMBER];
        let read = self.file.read_exact_at(&mut count, NUMBER as u64);
        read.with_context(|| format!("read {}", self.path.display()))?;
        Ok(i64::from_ne_bytes(count))
    }
}
