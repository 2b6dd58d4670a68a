//! What every command of this program needs of its process: a runtime, and a drained end.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code after a second SIGTERM or Ctrl-C, which ends the process at once.
const INTERRUPTED: i32 = 130;

/// A runtime with a worker thread for each core.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// Cancels `shutdown` at the first SIGTERM or Ctrl-C, and ends the process at the second.
pub async fn signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async || {
        tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" }
    };
    let name = next().await;
    tracing::info!(signal = name, "draining; once more ends at once");
    shutdown.cancel();
    next().await;
    std::process::exit(INTERRUPTED);
}
