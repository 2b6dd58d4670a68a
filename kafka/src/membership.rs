use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

/// What the group decided about one topic's partitions, and nobody has carried out yet.
#[derive(Debug)]
pub enum Rebalance {
    Assign(Vec<i32>),
    Revoke(Vec<i32>),
}

/// A consumer's part in its group. A decision is noted while the consumer is polled, and carried
/// out by the poll's caller, who owns the partitions' state; the group waits for that. No message
/// of a later assignment comes in between, because the poll returns nothing once it has noted a
/// decision.
#[derive(Default)]
pub struct Membership {
    decisions: Mutex<VecDeque<Rebalance>>,
    leaving: AtomicBool,
}

impl Membership {
    /// The oldest decision that is to be carried out.
    pub fn next_decision(&self) -> Option<Rebalance> {
        self.decisions.lock().expect("no holder panics").pop_front()
    }

    /// From now on partitions are let go at once, because their owner's state is gone already.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }
}

/// Answers an [`Rebalance::Assign`]: partitions are taken on; a [`crate::Fetcher`] reads them.
pub fn take_on(consumer: &BaseConsumer<Membership>) -> Result<(), KafkaError> {
    consumer.incremental_assign(&TopicPartitionList::new())
}

/// Answers a [`Rebalance::Revoke`]: partitions are let go, whether librdkafka reads them or not.
pub fn let_go(
    consumer: &BaseConsumer<Membership>,
    topic: &str,
    partitions: &[i32],
) -> Result<(), KafkaError> {
    let assignment = consumer.assignment()?;
    let mut read = TopicPartitionList::new();
    for element in assignment.elements() {
        if partitions.contains(&element.partition()) {
            read.add_partition(topic, element.partition());
        }
    }
    consumer.incremental_unassign(&read)
}

impl ClientContext for Membership {}

impl ConsumerContext for Membership {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Membership>,
        event: RDKafkaRespErr,
        tpl: &mut TopicPartitionList,
    ) {
        if self.leaving.load(Ordering::Acquire) {
            if let Err(error) = consumer.unassign() {
                tracing::warn!(
                    %error,
                    "the Kafka consumer could not let its partitions go; leaving the group anyway"
                );
            }
            return;
        }
        let partitions = tpl.elements().iter().map(|element| element.partition()).collect();
        let decision = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Rebalance::Assign(partitions),
            _ => Rebalance::Revoke(partitions),
        };
        self.decisions.lock().expect("no holder panics").push_back(decision);
    }
}
