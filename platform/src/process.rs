//! What every command of this program needs of its process: a runtime, and a drained end.

use std::ffi::OsString;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code after a second SIGTERM or Ctrl-C, which ends the process at once.
const INTERRUPTED: i32 = 130;

/// A runtime with a worker thread for each core.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// What asks a process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum EndSignal {
    /// Of a service manager.
    #[strum(serialize = "SIGTERM")]
    Terminate,
    /// As by Ctrl-C.
    #[strum(serialize = "SIGINT")]
    Interrupt,
}

/// Cancels `shutdown` at the first SIGTERM or Ctrl-C, and ends the process at the second.
pub async fn signals(shutdown: CancellationToken) -> std::io::Result<()> {
    signals_after(shutdown, async |_| {}).await
}

/// As [`signals`], but `first` is done before `shutdown` is cancelled.
pub async fn signals_after(
    shutdown: CancellationToken,
    first: impl AsyncFnOnce(EndSignal),
) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => EndSignal::Terminate,
            _ = interrupt.recv() => EndSignal::Interrupt,
        }
    };
    let signal = next().await;
    tracing::info!(%signal, "draining; once more ends at once");
    tokio::select! {
        () = first(signal) => {
            shutdown.cancel();
            next().await;
        }
        _ = next() => {}
    }
    std::process::exit(INTERRUPTED);
}

/// Sees to it that no HTTP client of this process reaches this machine through a proxy, whatever
/// `HTTP_PROXY` says: a proxy elsewhere knows another loopback.
///
/// # Safety
/// No other thread may run: it changes the process's environment.
pub unsafe fn keep_loopback_from_proxies() {
    const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";
    let mut hosts = OsString::from(LOOPBACK);
    if let Some(others) = std::env::var_os("NO_PROXY").or_else(|| std::env::var_os("no_proxy")) {
        hosts.push(",");
        hosts.push(others);
    }
    // SAFETY: no other thread runs, as the caller says.
    unsafe { std::env::set_var("NO_PROXY", hosts) };
}
