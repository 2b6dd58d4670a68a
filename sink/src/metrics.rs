use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};

/// The sink's metrics, which are counted by batch.
#[derive(Clone)]
pub(crate) struct Metrics {
    batches: Counter<u64>,
    rows: Counter<u64>,
    increments: Counter<u64>,
    inserts: Counter<u64>,
    rewinds: Counter<u64>,
    insert_seconds: Histogram<f64>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let meter = global::meter("tally");
        let counter =
            |name, description| meter.u64_counter(name).with_description(description).build();
        Metrics {
            batches: counter("tally_sink_batches_total", "Batches known to be in ClickHouse"),
            rows: counter("tally_sink_rows_total", "Rows in those batches, ledger rows included"),
            increments: counter("tally_sink_increments_total", "Increments in those batches"),
            inserts: counter("tally_sink_inserts_total", "Insert calls, by outcome"),
            rewinds: counter(
                "tally_sink_rewinds_total",
                "Partitions started again, because ClickHouse was not where the sink left it",
            ),
            insert_seconds: meter
                .f64_histogram("tally_sink_insert_seconds")
                .with_description("One insert call")
                .build(),
        }
    }

    pub(crate) fn inserted(&self, outcome: &'static str, seconds: f64) {
        self.inserts.add(1, &[KeyValue::new("outcome", outcome)]);
        self.insert_seconds.record(seconds, &[]);
    }

    pub(crate) fn rewound(&self) {
        self.rewinds.add(1, &[]);
    }

    pub(crate) fn stored(&self, rows: usize, increments: u64) {
        self.batches.add(1, &[]);
        self.rows.add(rows as u64, &[]);
        self.increments.add(increments, &[]);
    }
}
