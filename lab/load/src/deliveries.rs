use std::sync::atomic::{AtomicU64, Ordering};

use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::{ClientContext, Message};

/// What the broker said of the increments sent so far.
#[derive(Default)]
pub struct Deliveries {
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

impl Deliveries {
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    /// Increments in the message.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, increments: usize) {
        let is_in_log = result
            .as_ref()
            .is_ok_and(|message| tally_kafka::appended_at(message.offset()).is_some());
        let counter = if is_in_log { &self.acknowledged } else { &self.failed };
        counter.fetch_add(increments as u64, Ordering::Relaxed);
    }
}
