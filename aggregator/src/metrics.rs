use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use opentelemetry::metrics::{Counter, Gauge, Histogram};
use opentelemetry::{KeyValue, global};
use tally_counts::{Duplicates, Flush, Reject};

use crate::partitions::{Rejected, Remembered, Restored};

/// What a worker reports: per flush, never per message.
#[derive(Clone)]
pub(crate) struct Metrics {
    messages: Counter<u64>,
    increments: Counter<u64>,
    rejected: Counter<u64>,
    deltas: Counter<u64>,
    flushes: Counter<u64>,
    flush_seconds: Histogram<f64>,
    duplicates: Counter<u64>,
    duplicates_by_namespace: Counter<u64>,
    /// The namespaces that duplicates were told of: each is a series of the metric for good.
    namespaces: Arc<Mutex<BTreeSet<String>>>,
    remembered_ids: Gauge<u64>,
    remembered_bytes: Gauge<u64>,
    remembered_offsets: Gauge<i64>,
    rebuilt_messages: Counter<u64>,
    rebuild_seconds: Histogram<f64>,
    standing_still: Gauge<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let meter = global::meter("tally");
        let counter =
            |name, description| meter.u64_counter(name).with_description(description).build();
        let gauge = |name, description| meter.u64_gauge(name).with_description(description).build();
        Metrics {
            messages: counter("tally_aggregator_messages_total", "Messages in committed flushes"),
            increments: counter(
                "tally_aggregator_increments_total",
                "Increments in committed flushes",
            ),
            rejected: counter("tally_aggregator_rejected_total", "Messages rejected, by reason"),
            deltas: counter("tally_aggregator_deltas_total", "Deltas in committed flushes"),
            flushes: counter("tally_aggregator_flushes_total", "Flushes, by outcome"),
            flush_seconds: meter
                .f64_histogram("tally_aggregator_flush_seconds")
                .with_unit("s")
                .with_description("From taking the sums to their commit")
                .build(),
            duplicates: counter(
                "tally_aggregator_duplicates_total",
                "Recognised by an id in committed flushes: messages by their batch's, \
                 increments by their own",
            ),
            duplicates_by_namespace: counter(
                "tally_aggregator_duplicate_increments_total",
                "Increments left out for their own or their batch's id, by namespace; (others) \
                 beyond the first hundred",
            ),
            namespaces: Arc::default(),
            remembered_ids: gauge(
                "tally_aggregator_remembered_ids",
                "Ids that are remembered, by partition",
            ),
            remembered_bytes: gauge(
                "tally_aggregator_remembered_bytes",
                "Memory that they take, by partition",
            ),
            remembered_offsets: meter
                .i64_gauge("tally_aggregator_remembered_offsets")
                .with_description("How far back the ids go that are remembered, by partition")
                .build(),
            rebuilt_messages: counter(
                "tally_aggregator_rebuilt_messages_total",
                "Messages read again for their ids when a partition was taken on",
            ),
            rebuild_seconds: meter
                .f64_histogram("tally_aggregator_rebuild_seconds")
                .with_unit("s")
                .with_description("From taking a partition on to its ids being remembered again")
                .build(),
            standing_still: gauge(
                "tally_aggregator_partition_stands_still",
                "1 while nothing of the partition is counted, for a reason that /readyz tells, \
                 else 0",
            ),
        }
    }

    pub(crate) fn committed(&self, flush: &PendingFlush, seconds: f64) {
        self.messages.add(flush.messages, &[]);
        self.increments.add(flush.increments, &[]);
        self.deltas.add(flush.deltas, &[]);
        for (kind, count) in
            [("batch", flush.duplicates.batches), ("increment", flush.duplicates.increments)]
        {
            self.duplicates.add(count, &[KeyValue::new("kind", kind)]);
        }
        for (namespace, count) in &flush.duplicates.by_namespace {
            let label = self.label(namespace);
            self.duplicates_by_namespace.add(*count, &[KeyValue::new("namespace", label)]);
        }
        for reason in &flush.rejected {
            self.rejected.add(1, &[KeyValue::new("reason", reason.as_str())]);
        }
        self.flushes.add(1, &[KeyValue::new("outcome", "committed")]);
        self.flush_seconds.record(seconds, &[]);
    }

    /// The namespace's name in metrics: its own, as long as those are few.
    fn label(&self, namespace: &str) -> String {
        let mut known = self.namespaces.lock().expect("no holder panics");
        let is_few = known.len() < Duplicates::MAX_NAMESPACES;
        if !namespace.is_empty() && (is_few || known.contains(namespace)) {
            known.insert(namespace.to_owned());
            return namespace.to_owned();
        }
        String::from("(others)")
    }

    pub(crate) fn remembered(&self, partition: i32, remembered: &Remembered) {
        let of = [KeyValue::new("partition", i64::from(partition))];
        self.remembered_ids.record(remembered.ids as u64, &of);
        self.remembered_bytes.record(remembered.bytes as u64, &of);
        self.remembered_offsets.record(remembered.offsets, &of);
    }

    /// Nothing is remembered of the partition any more.
    pub(crate) fn forgotten(&self, partition: i32) {
        self.remembered(partition, &Remembered { ids: 0, bytes: 0, offsets: 0 });
    }

    pub(crate) fn stands_still(&self, partition: i32, stands_still: bool) {
        let of = [KeyValue::new("partition", i64::from(partition))];
        self.standing_still.record(u64::from(stands_still), &of);
    }

    pub(crate) fn restored(&self, restored: &Restored) {
        self.rebuilt_messages.add(restored.messages, &[]);
        self.rebuild_seconds.record(restored.seconds, &[]);
    }

    pub(crate) fn not_committed(&self) {
        self.flushes.add(1, &[KeyValue::new("outcome", "not_committed")]);
    }
}

/// What a flush in flight will have counted once it commits.
#[derive(Default)]
pub(crate) struct PendingFlush {
    messages: u64,
    increments: u64,
    deltas: u64,
    rejected: Vec<Reject>,
    duplicates: Duplicates,
    /// What it holds, encoded.
    bytes: usize,
}

impl PendingFlush {
    /// A flush that holds these rejected messages, and no batch yet.
    pub(crate) fn of(rejected: &[Rejected]) -> PendingFlush {
        let bytes = rejected.iter().map(Rejected::bytes).sum();
        let rejected = rejected.iter().map(|rejected| rejected.reason).collect();
        PendingFlush { rejected, bytes, ..PendingFlush::default() }
    }

    /// Adds what one partition's batch counted.
    pub(crate) fn add(&mut self, batch: &Flush) {
        self.messages += batch.counted + batch.duplicate + batch.rejected;
        self.increments += batch.increments;
        self.deltas += batch.sums.len() as u64;
        self.duplicates.merge(&batch.duplicates);
        self.bytes += batch.sums.encoded_bytes();
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
