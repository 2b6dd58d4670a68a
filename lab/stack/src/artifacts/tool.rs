//! The package managers' own clients, run as child processes and watched by the bytes that they
//! leave on disk.

use std::{fs, io, path::Path, process::Stdio, time::Duration};

use anyhow::Context;
use tokio::{
    process::Command,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    super::{progress::Task, sys},
    Transient,
};

const LOOK: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// How many of the last lines of a failed tool's output are shown.
const SHOWN_LINES: usize = 12;

/// One run of `mvn`, `npm` or `tar`.
pub(super) struct Run<'a> {
    pub what: &'static str,
    pub program: &'static str,
    pub command: Command,
    /// Where its bytes arrive.
    pub watch: &'a Path,
}

impl Run<'_> {
    pub(super) async fn finish(mut self, task: &Task) -> anyhow::Result<()> {
        let Run { what, program, .. } = self;
        let not_run = || format!("download {what}: `{program}` could not be run");
        let broken = |reason| Transient { what, reason };
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // A client that outlived this process would go on writing where the next attempt cleans up.
        sys::ends_with_parent(self.command.as_std_mut());
        let child = self.command.spawn().with_context(not_run)?;
        let output = async {
            let mut looks = interval(LOOK);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let output = child.wait_with_output();
            tokio::pin!(output);
            loop {
                tokio::select! {
                    output = &mut output => return output,
                    _ = looks.tick() => task.transferred(bytes_under(self.watch)),
                }
            }
        };
        let late = |_| broken(format!("`{program}` took longer than {LIMIT:?}"));
        let output = timeout(LIMIT, output).await.map_err(late)?.with_context(not_run)?;
        if output.status.success() {
            return Ok(());
        }
        let said = [last_lines(&output.stdout), last_lines(&output.stderr)].concat().join("\n");
        Err(broken(format!("`{program}` failed ({}):\n{said}", output.status)).into())
    }
}

fn last_lines(output: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..]
        .iter()
        .map(|line| format!("    {line}"))
        .collect()
}

/// For a progress bar only: files come and go while this looks, and what has just gone counts
/// nothing.
fn bytes_under(folder: &Path) -> u64 {
    fn of_entry(entry: io::Result<fs::DirEntry>) -> io::Result<u64> {
        let entry = entry?;
        let meta = entry.metadata()?;
        Ok(if meta.is_dir() { bytes_under(&entry.path()) } else { meta.len() })
    }
    fs::read_dir(folder)
        .map_or(0, |entries| entries.map(|entry| of_entry(entry).unwrap_or(0)).sum())
}
