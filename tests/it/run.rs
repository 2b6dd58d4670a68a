//! Runs the binary, or another program, to its end.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// A command that takes longer is stuck. A first `pip install` is the slowest of them.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(crate) struct Ended {
    /// None if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Checks the exit code, and gives back what was printed.
    pub(crate) fn expect_code(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

/// The binary under test, in a folder of its own, so that no configuration of the developer's
/// reaches it.
pub(crate) fn tally(folder: &Path) -> Command {
    let mut command = Command::from(std_tally(folder));
    command.kill_on_drop(true);
    command
}

/// As [`tally`], for a service that its owner kills and waits for itself.
pub(crate) fn std_tally(folder: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tally"));
    command.current_dir(folder).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        // Where downloads are kept is the developer's to say; nothing else is.
        if name.to_string_lossy().starts_with("TALLY_") && name != "TALLY_CACHE" {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) async fn run(command: &mut Command) -> Ended {
    let name = format!("{:?}", command.as_std());
    let output = tokio::time::timeout(PATIENCE, command.stdin(Stdio::null()).output())
        .await
        .unwrap_or_else(|_| panic!("{name} has not ended within {PATIENCE:?}"))
        .unwrap_or_else(|error| panic!("start {name}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
