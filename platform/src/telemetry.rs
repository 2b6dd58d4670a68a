//! Logs, metrics and traces of a service.
//!
//! ```text
//! tracing events ─► telemetry.log ─┬─► stderr, text or JSON
//!                                  └─► OTLP logs    ─┐
//! tracing spans  ─► telemetry.log ───► OTLP traces  ─┼─► telemetry.otlp_endpoint, if set
//! global meters  ─► meter provider ─┬► OTLP metrics ─┘
//!                                   └► Prometheus registry ─► /metrics
//! ```
//!
//! Exporters run on threads of their own, so that a service may be made of threads or of tasks. A
//! collector that cannot be reached costs a line in the log now and then, nothing else.

mod log;
mod metrics;
mod otlp;
mod series;
#[cfg(test)]
mod tests;
mod watched;

use std::time::Duration;

use anyhow::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tracing::Dispatch;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config;

pub use series::{series, sum_of_series};

/// How long [`Guard::shutdown`] waits for what is not sent yet.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Keeps telemetry running; what is not sent yet is sent when it is shut down or dropped.
#[must_use = "telemetry ends when its guard is dropped"]
pub struct Guard {
    metrics: prometheus::Registry,
    meters: SdkMeterProvider,
    otlp: Option<otlp::Pipelines>,
    is_shut_down: bool,
}

impl Guard {
    /// Everything that `/metrics` shows: the instruments of the global meter provider, and the
    /// process itself.
    pub fn metrics(&self) -> prometheus::Registry {
        self.metrics.clone()
    }

    /// Sends what is not sent yet and ends the exporters; blocks for 5 seconds at most.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.is_shut_down, true) {
            return;
        }
        let flushed = std::thread::scope(|scope| {
            let mut flushes =
                vec![("metrics", scope.spawn(|| self.meters.shutdown_with_timeout(FLUSH_LIMIT)))];
            if let Some(otlp) = &self.otlp {
                flushes.push((
                    "traces",
                    scope.spawn(|| otlp.traces.shutdown_with_timeout(FLUSH_LIMIT)),
                ));
                flushes
                    .push(("logs", scope.spawn(|| otlp.logs.shutdown_with_timeout(FLUSH_LIMIT))));
            }
            flushes.into_iter().map(|(signal, flush)| (signal, flush.join())).collect::<Vec<_>>()
        });
        for (signal, flushed) in flushed {
            match flushed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(signal, %error, "the last telemetry was not sent"),
                Err(_) => {
                    tracing::warn!(signal, "an exporter panicked while it sent the last telemetry")
                }
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts telemetry for the whole process, once.
///
/// `service_name` is the name of the service alone, such as `sink`; `instance` tells this process
/// from others of its kind.
pub fn start(
    config: &config::Telemetry,
    service_name: &'static str,
    instance: &str,
) -> anyhow::Result<Guard> {
    let (guard, dispatch) = build(config, service_name, instance, std::io::stderr)?;
    dispatch.try_init().context("telemetry is started already in this process")?;
    opentelemetry::global::set_meter_provider(guard.meters.clone());
    if let Some(otlp) = &guard.otlp {
        opentelemetry::global::set_tracer_provider(otlp.traces.clone());
    }
    Ok(guard)
}

/// Telemetry that is not the process's yet; `writer` is where the log is written.
fn build<W>(
    config: &config::Telemetry,
    service_name: &'static str,
    instance: &str,
    writer: W,
) -> anyhow::Result<(Guard, Dispatch)>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = log::filter(&config.log)?;
    let resource = resource(service_name, instance);
    let otlp = config.otlp_endpoint.as_deref().map(otlp::Endpoint::parse).transpose()?;
    let pipelines =
        otlp.as_ref().map(|endpoint| otlp::Pipelines::new(endpoint, &resource)).transpose()?;
    let reader = otlp.as_ref().map(otlp::metric_reader).transpose()?;
    let (meters, metrics) = metrics::provider(resource, reader)?;

    let mut layers = vec![log::layer(config.log_format, writer)];
    if let Some(pipelines) = &pipelines {
        layers.extend(pipelines.layers());
    }
    let dispatch = Dispatch::new(tracing_subscriber::registry().with(layers).with(filter));
    Ok((Guard { metrics, meters, otlp: pipelines, is_shut_down: false }, dispatch))
}

fn resource(service_name: &'static str, instance: &str) -> Resource {
    Resource::builder()
        .with_service_name(format!("tally-{service_name}"))
        .with_attribute(opentelemetry::KeyValue::new("service.instance.id", instance.to_owned()))
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}
