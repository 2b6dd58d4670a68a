//! Runs one service: telemetry, health, the service itself, and a drained end on SIGTERM or Ctrl-C.

use std::process::ExitCode;

use tally_service::config::Config;
use tally_service::health::{self, Health};
use tally_service::telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::{self, Failure};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Producer,
    Aggregator,
    Sink,
    Reader,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Producer => "producer",
            Kind::Aggregator => "aggregator",
            Kind::Sink => "sink",
            Kind::Reader => "reader",
        }
    }
}

pub(crate) fn run(kind: Kind, config: &Config) -> Result<ExitCode, Failure> {
    let instance = instance(config)?;
    let guard = telemetry::start(&config.telemetry, kind.name(), &instance).map_err(Failure::config)?;
    let ended = runtime()?.block_on(serve(kind, config, &instance, guard.metrics()));
    if let Err(error) = &ended {
        tracing::error!(error = exit::with_causes(error), "stopped");
    }
    guard.shutdown();
    ended.map(|()| ExitCode::SUCCESS).map_err(Failure::failed)
}

async fn serve(
    kind: Kind,
    config: &Config,
    instance: &str,
    metrics: prometheus::Registry,
) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let health = Health::new();
    let address = match kind {
        Kind::Producer => config.producer.health,
        Kind::Aggregator => config.aggregator.health,
        Kind::Sink => config.sink.health,
        Kind::Reader => config.reader.health,
    };
    let listener = health::bind(address, "health").await?;
    tracing::info!(%address, service = kind.name(), instance, "health and metrics");
    let health_shutdown = CancellationToken::new();
    let health_server =
        tokio::spawn(health::serve(listener, health.clone(), metrics, health_shutdown.clone()));
    let signals = tokio::spawn(signals(shutdown.clone()));
    let ended: anyhow::Result<()> = match kind {
        Kind::Producer => tally_producer::run(config, health, shutdown).await.map_err(Into::into),
        Kind::Aggregator => {
            tally_aggregator::run(config, instance, health, shutdown).await.map_err(Into::into)
        }
        Kind::Sink => tally_sink::run(config, health, shutdown).await.map_err(Into::into),
        Kind::Reader => tally_reader::run(config, health, shutdown).await.map_err(Into::into),
    };
    signals.abort();
    health_shutdown.cancel();
    health_server.await??;
    ended
}

/// The configured name of this process, or the host's.
fn instance(config: &Config) -> Result<String, Failure> {
    match &config.aggregator.instance {
        Some(name) => Ok(name.clone()),
        None => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(Failure::failed)?;
            Ok(name.trim().to_owned())
        }
    }
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)
}

/// Cancels `shutdown` at the first SIGTERM or Ctrl-C, and ends the process at the second.
pub(crate) async fn signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut next = async || {
        tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" }
    };
    let name = next().await;
    tracing::info!(signal = name, "draining; once more ends at once");
    shutdown.cancel();
    next().await;
    std::process::exit(130);
}
