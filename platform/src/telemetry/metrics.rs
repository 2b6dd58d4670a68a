//! One meter provider, read by Prometheus and, with an endpoint, by OTLP.
//!
//! An instrument's name is what both show: `tally_sink_batches_total`, `tally_sink_insert_seconds`.
//! Nothing is added to it, so a name brings its own unit and, for a counter, its `_total`.
//! Histograms named `…_seconds` and `…_bytes` get buckets that fit.

use anyhow::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{
    Aggregation, Instrument, InstrumentKind, SdkMeterProvider, Stream,
};

use super::otlp::MetricReader;

const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
const BYTES: [f64; 9] =
    [256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

pub(super) fn provider(
    resource: Resource,
    otlp: Option<MetricReader>,
) -> anyhow::Result<(SdkMeterProvider, prometheus::Registry)> {
    let registry = prometheus::Registry::new();
    #[cfg(target_os = "linux")]
    registry
        .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
        .context("register the process metrics with Prometheus")?;
    let exporter = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .without_counter_suffixes()
        .without_units()
        .scope_info_enabled(false)
        .build()
        .context("register the metrics with Prometheus")?;
    let mut provider = SdkMeterProvider::builder()
        .with_resource(resource)
        .with_reader(exporter)
        .with_view(buckets);
    if let Some(reader) = otlp {
        provider = provider.with_reader(reader);
    }
    Ok((provider.build(), registry))
}

fn buckets(instrument: &Instrument) -> Option<Stream> {
    if instrument.kind() != InstrumentKind::Histogram {
        return None;
    }
    let boundaries: &[f64] = match instrument.name() {
        name if name.ends_with("_seconds") => &SECONDS,
        name if name.ends_with("_bytes") => &BYTES,
        _ => return None,
    };
    let aggregation = Aggregation::ExplicitBucketHistogram {
        boundaries: boundaries.to_vec(),
        record_min_max: true,
    };
    Some(Stream::builder().with_aggregation(aggregation).build().expect("the boundaries ascend"))
}
