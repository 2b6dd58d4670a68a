//! Says that a signal does not get through: when it begins, now and then while it lasts, and when
//! it is over.

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

/// The least time between two lines about the same outage.
const REMINDER: Duration = Duration::from_secs(300);

/// The exports that failed since one last succeeded.
#[derive(Debug, Default)]
pub(super) struct Outage {
    failures: u64,
    said: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Failing { failures: u64 },
    Over { failures: u64 },
}

impl Outage {
    /// Takes note of an export; returns what is worth saying about it.
    pub(super) fn observe(&mut self, succeeded: bool, now: Instant) -> Option<Notice> {
        if succeeded {
            let failures = std::mem::take(self).failures;
            return (failures > 0).then_some(Notice::Over { failures });
        }
        self.failures += 1;
        let is_due = self.said.is_none_or(|said| now.duration_since(said) >= REMINDER);
        is_due.then(|| {
            self.said = Some(now);
            Notice::Failing { failures: self.failures }
        })
    }
}

/// An exporter whose outages are reported.
pub(super) struct Watched<E> {
    exporter: E,
    signal: &'static str,
    url: String,
    outage: Mutex<Outage>,
}

impl<E> Watched<E> {
    pub(super) fn new(exporter: E, signal: &'static str, url: String) -> Watched<E> {
        Watched { exporter, signal, url, outage: Mutex::default() }
    }

    fn observe(&self, exported: OTelSdkResult) -> OTelSdkResult {
        let notice = self
            .outage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .observe(exported.is_ok(), Instant::now());
        match (notice, &exported) {
            (Some(Notice::Failing { failures }), Err(error)) => {
                tracing::warn!(signal = self.signal, url = self.url, failures, %error, "telemetry does not get through");
            }
            (Some(Notice::Over { failures }), _) => {
                tracing::info!(
                    signal = self.signal,
                    url = self.url,
                    failures,
                    "telemetry gets through again"
                );
            }
            _ => {}
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

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
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
