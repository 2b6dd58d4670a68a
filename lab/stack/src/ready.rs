//! Waits until a process that was started is ready.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

use super::error::shown_log;
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
    log: &Path,
    mut ask: impl AsyncFnMut() -> Result<(), NoAnswer>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let answer = ask().await;
        // Looked at after the answer: what answered may be a stranger that took the port as the
        // process died of it.
        if let Liveness::Ended(status) = process.liveness()? {
            let how = status
                .map_or_else(|| "exit status unknown".to_owned(), |status| status.to_string());
            bail!("{name} ended ({how}) before it was ready\n{}", shown_log(log));
        }
        match answer {
            Ok(()) => return Ok(()),
            Err(reason) if Instant::now() >= deadline => {
                let seconds = READY_LIMIT.as_secs();
                bail!("{name} is not ready after {seconds} s: {reason}\n{}", shown_log(log));
            }
            Err(_) => sleep(PROBE_PAUSE).await,
        }
    }
}
