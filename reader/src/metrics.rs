use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

use crate::shared_memory::Holding;

#[derive(Clone)]
pub(crate) struct Metrics {
    requests: Counter<u64>,
    hits: Counter<u64>,
    misses: Counter<u64>,
    entries: Gauge<u64>,
    cached_bytes: Gauge<u64>,
    unstored_bytes: Gauge<u64>,
    standing_still: Gauge<u64>,
    query_seconds: Histogram<f64>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let meter = opentelemetry::global::meter("tally");
        Metrics {
            requests: meter
                .u64_counter("tally_reader_requests_total")
                .with_description("Requests, by how they were answered")
                .build(),
            hits: meter
                .u64_counter("tally_reader_hits_total")
                .with_description("Counters answered from memory")
                .build(),
            misses: meter
                .u64_counter("tally_reader_misses_total")
                .with_description("Counters looked up in the store")
                .build(),
            entries: meter
                .u64_gauge("tally_reader_entries")
                .with_description("Counters in memory")
                .build(),
            cached_bytes: meter
                .u64_gauge("tally_reader_cached_bytes")
                .with_description("What the counters in memory take, at most reader.cached_bytes")
                .build(),
            unstored_bytes: meter
                .u64_gauge("tally_reader_unstored_bytes")
                .with_description("Deltas in memory that the store may lack")
                .build(),
            standing_still: meter
                .u64_gauge("tally_reader_partition_stands_still")
                .with_description(
                    "Whether a partition's batches of deltas are not counted in: 1, or 0",
                )
                .build(),
            query_seconds: meter
                .f64_histogram("tally_reader_query_seconds")
                .with_description("How long queries of the store take, by how they end")
                .build(),
        }
    }

    pub(crate) fn answered(&self, outcome: &'static str) {
        self.requests.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    pub(crate) fn looked_at(&self, hits: usize, misses: usize) {
        self.hits.add(hits as u64, &[]);
        self.misses.add(misses as u64, &[]);
    }

    pub(crate) fn holds(&self, holding: Holding) {
        let Holding { entries, cached_bytes, unstored_bytes } = holding;
        self.entries.record(entries as u64, &[]);
        self.cached_bytes.record(cached_bytes as u64, &[]);
        self.unstored_bytes.record(unstored_bytes as u64, &[]);
    }

    pub(crate) fn stands_still(&self, partition: i32, stands_still: bool) {
        let of = [KeyValue::new("partition", i64::from(partition))];
        self.standing_still.record(u64::from(stands_still), &of);
    }

    pub(crate) fn queried(&self, took: Duration, is_answered: bool) {
        let outcome = if is_answered { "answered" } else { "failed" };
        self.query_seconds.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
    }
}
