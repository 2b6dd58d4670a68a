use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};
use tally_counts::Reject;

/// What a worker reports: per flush, never per message.
pub(crate) struct Metrics {
    messages: Counter<u64>,
    increments: Counter<u64>,
    rejected: Counter<u64>,
    deltas: Counter<u64>,
    flushes: Counter<u64>,
    flush_seconds: Histogram<f64>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let meter = global::meter("tally");
        let counter = |name, description| meter.u64_counter(name).with_description(description).build();
        Metrics {
            messages: counter("tally_aggregator_messages_total", "Messages in committed flushes"),
            increments: counter("tally_aggregator_increments_total", "Increments in committed flushes"),
            rejected: counter("tally_aggregator_rejected_total", "Messages rejected, by reason"),
            deltas: counter("tally_aggregator_deltas_total", "Deltas in committed flushes"),
            flushes: counter("tally_aggregator_flushes_total", "Flushes, by outcome"),
            flush_seconds: meter
                .f64_histogram("tally_aggregator_flush_seconds")
                .with_unit("s")
                .with_description("From taking the sums to their commit")
                .build(),
        }
    }

    pub(crate) fn committed(&self, flush: &Pending, seconds: f64) {
        self.messages.add(flush.messages, &[]);
        self.increments.add(flush.increments, &[]);
        self.deltas.add(flush.deltas, &[]);
        for reason in &flush.rejected {
            self.rejected.add(1, &[KeyValue::new("reason", reason.as_str())]);
        }
        self.flushes.add(1, &[KeyValue::new("outcome", "committed")]);
        self.flush_seconds.record(seconds, &[]);
    }

    pub(crate) fn not_committed(&self) {
        self.flushes.add(1, &[KeyValue::new("outcome", "not_committed")]);
    }
}

/// What a flush in flight will have counted once it commits.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) messages: u64,
    pub(crate) increments: u64,
    pub(crate) deltas: u64,
    pub(crate) rejected: Vec<Reject>,
}
