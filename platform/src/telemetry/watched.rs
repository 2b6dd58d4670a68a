//! Exporters that log when a signal does not reach the collector: when that begins, now and then
//! while it lasts, and when it is over.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use crate::quiet_log::QuietLog;

/// The least time between two lines about the same outage.
const REMINDER: Duration = Duration::from_secs(300);

/// An exporter whose outages are reported.
pub(super) struct Watched<E> {
    exporter: E,
    signal: &'static str,
    url: String,
    log: Mutex<QuietLog>,
}

impl<E> Watched<E> {
    pub(super) fn new(exporter: E, signal: &'static str, url: String) -> Watched<E> {
        Watched { exporter, signal, url, log: Mutex::new(QuietLog::every(REMINDER)) }
    }

    fn observe(&self, exported: OTelSdkResult) -> OTelSdkResult {
        // The lock ends before a line is written, which may come back here as a log to export.
        let due = {
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            if exported.is_ok() { log.succeeded() } else { log.failed(Instant::now()) }
        };
        let (signal, url) = (self.signal, &self.url);
        match (due, &exported) {
            (Some(failures), Ok(())) => {
                tracing::info!(signal, url, failures, "telemetry gets through again");
            }
            (Some(failures), Err(error)) => tracing::warn!(
                signal, url, failures, %error,
                "telemetry does not reach the OTLP collector and is dropped; counting goes on"
            ),
            (None, _) => {}
        }
        exported
    }
}

impl<E> fmt::Debug for Watched<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("signal", &self.signal)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.observe(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Watched<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.observe(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.observe(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
