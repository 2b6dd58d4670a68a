use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

/// How long a group may take to give partitions to a member that it has taken some from. The other
/// members have to let theirs go first.
const LEFT_OUT: Duration = Duration::from_secs(90);

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
    /// When the group took partitions; none since it gave some, which may be no partitions.
    taken: Mutex<Option<Instant>>,
}

/// The group gives this member nothing any more. librdkafka asks for the group's coordinator again
/// only when a connection comes or goes, so a member whose request was lost may wait for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the Kafka group took this member's partitions and has not answered for {} s: start this \
     process again. Other members have its partitions meanwhile",
    LEFT_OUT.as_secs()
)]
pub struct LeftOut;

impl Membership {
    /// The oldest decision that is to be carried out.
    pub fn next_decision(&self) -> Option<Rebalance> {
        self.decisions.lock().expect("no holder panics").pop_front()
    }

    /// To be called often: an error once the group has left this member out for too long.
    pub fn check(&self) -> Result<(), LeftOut> {
        let taken = *self.taken.lock().expect("no holder panics");
        match taken {
            Some(taken) if taken.elapsed() >= LEFT_OUT => Err(LeftOut),
            _ => Ok(()),
        }
    }

    fn note(&self, decision: Rebalance) {
        let mut taken = self.taken.lock().expect("no holder panics");
        *taken = match decision {
            Rebalance::Assign(_) => None,
            Rebalance::Revoke(_) => taken.or_else(|| Some(Instant::now())),
        };
        drop(taken);
        self.decisions.lock().expect("no holder panics").push_back(decision);
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
        self.note(decision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_left_out_once_the_group_gives_it_nothing_for_long() {
        let member = Membership::default();
        let long_ago = || Instant::now().checked_sub(LEFT_OUT).expect("the machine runs for long");
        assert_eq!(member.check(), Ok(()), "it has just begun");
        member.note(Rebalance::Revoke(vec![1]));
        assert_eq!(member.check(), Ok(()), "others may have to let theirs go");
        *member.taken.lock().unwrap() = Some(long_ago());
        member.note(Rebalance::Revoke(vec![2]));
        assert_eq!(member.check(), Err(LeftOut));
        member.note(Rebalance::Assign(vec![]));
        assert_eq!(member.check(), Ok(()), "it was given none, and that is an answer");
    }
}
