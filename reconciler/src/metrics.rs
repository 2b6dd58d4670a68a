use std::time::Duration;

use opentelemetry::metrics::{Counter, Gauge, Histogram};
use opentelemetry::{KeyValue, global};

use crate::{Report, Verdict};

/// What `watch` publishes.
pub(crate) struct Metrics {
    rounds: Counter<u64>,
    round_seconds: Histogram<f64>,
    verified_through: Gauge<i64>,
    verified_through_seconds: Gauge<f64>,
    mismatch: Gauge<u64>,
    not_proven: Gauge<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let meter = global::meter("tally");
        Metrics {
            rounds: meter
                .u64_counter("tally_reconciler_rounds_total")
                .with_description("Rounds of verifying, by outcome")
                .build(),
            round_seconds: meter
                .f64_histogram("tally_reconciler_round_seconds")
                .with_description("One round")
                .build(),
            verified_through: meter
                .i64_gauge("tally_reconciler_verified_through")
                .with_description("The next offset of a partition: all before it is proven")
                .build(),
            verified_through_seconds: meter
                .f64_gauge("tally_reconciler_verified_through_seconds")
                .with_description(
                    "Kafka's time of the last proven message of a partition, in seconds since 1970",
                )
                .build(),
            mismatch: meter
                .u64_gauge("tally_reconciler_mismatch")
                .with_description("1 while a partition in ClickHouse is not what Kafka comes to")
                .build(),
            not_proven: meter
                .u64_gauge("tally_reconciler_not_proven")
                .with_description("1 while a partition can be neither proven nor contradicted")
                .build(),
        }
    }

    pub(crate) fn failed(&self) {
        self.rounds.add(1, &[KeyValue::new("outcome", "failed")]);
    }

    /// Nothing is wrong any more with a partition that Kafka does not have.
    pub(crate) fn gone(&self, partition: i64) {
        self.mismatch.record(0, &[KeyValue::new("partition", partition)]);
    }

    pub(crate) fn ended(&self, report: &Report, took: Duration) {
        self.rounds.add(1, &[KeyValue::new("outcome", report.verdict.name())]);
        self.round_seconds.record(took.as_secs_f64(), &[]);
        for p in &report.partitions {
            let of = [KeyValue::new("partition", p.partition)];
            self.mismatch.record(u64::from(p.verdict == Verdict::Mismatch), &of);
            self.not_proven.record(u64::from(p.verdict == Verdict::NotProven), &of);
            if p.is_proven_so_far() {
                self.verified_through.record(p.position, &of);
                if let Some(ms) = p.through_ms {
                    self.verified_through_seconds.record(ms as f64 / 1000.0, &of);
                }
            }
        }
    }
}
