//! The server alone: `serve <libchdb.so> <data folder> <address> [calls at once] [queue seconds]
//! [drain seconds]`.
//!
//! Prints `listening on <address>` once the port answers, and stops on SIGTERM.

use std::time::Duration;

use anyhow::Context;
use tally_clickhouse::{Config, Server};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let mut argument =
        |name: &'static str| arguments.next().with_context(|| format!("{name} is missing"));
    let mut config = Config::new(
        argument("library")?.into(),
        argument("data")?.into(),
        argument("address")?.parse()?,
    );
    if let Ok(connections) = argument("connections") {
        config.connections = connections.parse().context("connections")?;
    }
    if let Ok(seconds) = argument("queue seconds") {
        config.queue_timeout = Duration::from_secs(seconds.parse().context("queue seconds")?);
    }
    if let Ok(seconds) = argument("drain seconds") {
        config.drain_timeout = Duration::from_secs(seconds.parse().context("drain seconds")?);
    }

    let shutdown = CancellationToken::new();
    let mut terminated = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let server = Server::bind(config).await?;
    println!("listening on {}", server.address());
    let stop = shutdown.clone();
    let (served, ()) = tokio::join!(server.run(shutdown), async move {
        terminated.recv().await;
        stop.cancel();
    });
    served
}
