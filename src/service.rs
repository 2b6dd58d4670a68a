//! Runs one service: telemetry, health, the service itself, and a drained end on SIGTERM or Ctrl-C.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tally_platform::causes::with_causes;
use tally_platform::config::Config;
use tally_platform::exit::Failure;
use tally_platform::health::{self, Health};
use tally_platform::process::{EndSignal, runtime, signals_after};
use tally_platform::service::Service;
use tally_platform::{http, telemetry};
use tokio_util::sync::CancellationToken;

pub(crate) fn run(service: Service, config: &Config) -> Result<ExitCode, Failure> {
    let instance = instance(config)?;
    let guard =
        telemetry::start(&config.telemetry, service.name(), &instance).map_err(Failure::config)?;
    let ended = runtime().map_err(Failure::failed)?.block_on(serve(
        service,
        config,
        &instance,
        guard.metrics(),
    ));
    if let Err(error) = &ended {
        tracing::error!(error = with_causes(error.as_ref()), "stopped");
    }
    guard.shutdown();
    ended.map(|()| ExitCode::SUCCESS).map_err(Failure::failed)
}

async fn serve(
    service: Service,
    config: &Config,
    instance: &str,
    metrics: prometheus::Registry,
) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let health = Health::new();
    let address = match service {
        Service::Producer => config.producer.health,
        Service::Aggregator => config.aggregator.health,
        Service::Sink => config.sink.health,
        Service::Reader => config.reader.health,
        Service::Watch => config.reconciler.health,
    };
    let listener = http::bind(address, "health").await?;
    tracing::info!(%address, service = service.name(), instance, "health and metrics");
    let health_shutdown = CancellationToken::new();
    let health_server =
        tokio::spawn(health::serve(listener, health.clone(), metrics, health_shutdown.clone()));
    let leave = {
        let (health, grace) = (health.clone(), grace(service, config));
        async move |signal| {
            health.end();
            // Nobody waits at a terminal, and no balancer has to notice.
            if signal == EndSignal::Terminate {
                tokio::time::sleep(grace).await;
            }
        }
    };
    let signals = tokio::spawn(signals_after(shutdown.clone(), leave));
    let ended: anyhow::Result<()> = match service {
        Service::Producer => {
            tally_producer::run(config, health, shutdown).await.map_err(Into::into)
        }
        Service::Aggregator => {
            tally_aggregator::run(config, instance, health, shutdown).await.map_err(Into::into)
        }
        Service::Sink => tally_sink::run(config, health, shutdown).await.map_err(Into::into),
        Service::Reader => tally_reader::run(config, health, shutdown).await.map_err(Into::into),
        Service::Watch => {
            tally_reconciler::watch(config, health, shutdown).await.map_err(Into::into)
        }
    };
    signals.abort();
    health_shutdown.cancel();
    health_server.await.context("serve health and metrics")?;
    ended
}

/// How long others may need to notice that the service is not ready any more, before it takes no
/// more requests.
fn grace(service: Service, config: &Config) -> Duration {
    Duration::from_millis(match service {
        Service::Producer => config.producer.shutdown_grace_ms,
        Service::Reader => config.reader.shutdown_grace_ms,
        Service::Aggregator | Service::Sink | Service::Watch => 0,
    })
}

/// The configured name of this process, or the host's.
fn instance(config: &Config) -> Result<String, Failure> {
    match &config.aggregator.instance {
        Some(name) => Ok(name.clone()),
        None => {
            let name =
                std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(Failure::failed)?;
            Ok(name.trim().to_owned())
        }
    }
}
