//! Waits until a process that was started is ready.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Error;
use super::error::LogTail;
use super::part::NoAnswer;
use super::process::{Liveness, Process};

const READY_LIMIT: Duration = Duration::from_secs(120);
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// Asks until the process answers, but not longer than it lives, nor than [`READY_LIMIT`].
///
/// An error shows the end of its `log`.
pub(super) async fn until_ready(
    process: &mut Process,
    name: &str,
    log: PathBuf,
    mut ask: impl AsyncFnMut() -> Result<(), NoAnswer>,
) -> Result<(), Error> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let answer = ask().await;
        // Looked at after the answer: what answered may be a stranger that took the port as the
        // process died of it.
        let pid = process.identity().pid;
        if let Liveness::Ended(status) = process.liveness().map_err(Error::process(name, pid))? {
            let how = status
                .map_or_else(|| "exit status unknown".to_owned(), |status| status.to_string());
            return Err(Error::Died { name: name.to_owned(), how, log: LogTail::read(log) });
        }
        match answer {
            Ok(()) => return Ok(()),
            Err(reason) if Instant::now() >= deadline => {
                let (name, reason) = (name.to_owned(), reason.to_string());
                let seconds = READY_LIMIT.as_secs();
                return Err(Error::Silent { name, seconds, reason, log: LogTail::read(log) });
            }
            Err(_) => sleep(PROBE_PAUSE).await,
        }
    }
}
