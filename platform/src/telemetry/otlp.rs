//! The way out over OTLP: HTTP with protobuf bodies, a batch thread a signal.
//!
//! What the exporters themselves and their HTTP client log or trace does not go back into them.

use std::time::Duration;

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::PeriodicReader;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Metadata;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;

use super::log::BoxedLayer;
use super::watched::Watched;

/// Shorter than the flush at shutdown may take, so that the last export is over when the process
/// ends.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Targets of the exporters and of the HTTP client beneath them.
const OWN_TARGETS: [&str; 6] = ["opentelemetry", "hyper", "reqwest", "rustls", "h2", "tower"];

macro_rules! over_http {
    ($Exporter:ident, $url:expr) => {
        $Exporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_TIMEOUT)
            .with_endpoint($url)
            .build()
    };
}

pub(super) type MetricReader = PeriodicReader<Watched<MetricExporter>>;

/// `telemetry.otlp_endpoint`, to which each signal adds its path.
pub(super) struct Endpoint<'a>(&'a str);

impl<'a> Endpoint<'a> {
    pub(super) fn parse(text: &'a str) -> anyhow::Result<Endpoint<'a>> {
        anyhow::ensure!(
            text.starts_with("http://") || text.starts_with("https://"),
            "telemetry.otlp_endpoint: `{text}` does not begin with http:// or https://"
        );
        Ok(Endpoint(text.trim_end_matches('/')))
    }

    fn exporter<E>(
        &self,
        signal: &'static str,
        build: impl FnOnce(String) -> Result<E, ExporterBuildError>,
    ) -> anyhow::Result<Watched<E>> {
        let url = format!("{}/v1/{signal}", self.0);
        let exporter = build(url.clone()).with_context(|| {
            format!("telemetry.otlp_endpoint: no exporter for {signal} to {url}")
        })?;
        Ok(Watched::new(exporter, signal, url))
    }
}

pub(super) struct Pipelines {
    pub(super) traces: SdkTracerProvider,
    pub(super) logs: SdkLoggerProvider,
}

impl Pipelines {
    pub(super) fn new(endpoint: &Endpoint<'_>, resource: &Resource) -> anyhow::Result<Pipelines> {
        let spans = endpoint.exporter("traces", |url| over_http!(SpanExporter, url))?;
        let logs = endpoint.exporter("logs", |url| over_http!(LogExporter, url))?;
        Ok(Pipelines {
            traces: SdkTracerProvider::builder()
                .with_resource(resource.clone())
                .with_batch_exporter(spans)
                .build(),
            logs: SdkLoggerProvider::builder()
                .with_resource(resource.clone())
                .with_batch_exporter(logs)
                .build(),
        })
    }

    /// The layers that feed spans and events in.
    pub(super) fn layers(&self) -> [BoxedLayer; 2] {
        let traces = tracing_opentelemetry::layer().with_tracer(self.traces.tracer("tally"));
        let logs = OpenTelemetryTracingBridge::new(&self.logs);
        let is_foreign = || filter_fn(|metadata| !is_own(metadata));
        [traces.with_filter(is_foreign()).boxed(), logs.with_filter(is_foreign()).boxed()]
    }
}

pub(super) fn metric_reader(endpoint: &Endpoint<'_>) -> anyhow::Result<MetricReader> {
    let metrics = endpoint.exporter("metrics", |url| over_http!(MetricExporter, url))?;
    Ok(PeriodicReader::builder(metrics).build())
}

fn is_own(metadata: &Metadata<'_>) -> bool {
    OWN_TARGETS.iter().any(|target| metadata.target().starts_with(target))
}
