use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

use crate::member::Member;

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
    /// What the group took last; none since it gave some, which may be no partitions.
    taken: Mutex<Option<Taken>>,
    is_deaf: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    /// When it took the first of what it has taken since it last gave some.
    since: Instant,
    /// The group's generation then; `None` where the group took all, because it had lost this
    /// member.
    generation: Option<i32>,
}

/// Why a member must begin anew: the group gives it nothing any more, or waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// librdkafka asks for the group's coordinator again only when a connection comes or goes, so a
    /// member whose request was lost may wait for ever.
    #[error(
        "the Kafka group took this member's partitions and has not answered for {} s: start this \
         process again. Other members have its partitions meanwhile",
        LEFT_OUT.as_secs()
    )]
    NoAnswer,
    /// librdkafka joins at once where the topic's partitions change, also while it waits until some
    /// are let go. It never notices that they were then, and passes over every later rebalance:
    /// the group waits for it (`rkcg_rebalance_incr_assignment`, librdkafka 2.12).
    #[error(
        "the topic's partitions changed while this member had some to let go, after which its \
         Kafka client takes part in no rebalance any more: start this process again. Other \
         members get its partitions meanwhile"
    )]
    Deaf,
}

impl Membership {
    /// The oldest decision that is to be carried out.
    pub fn next_decision(&self) -> Option<Rebalance> {
        self.decisions.lock().expect("no holder panics").pop_front()
    }

    /// To be called often: an error once this member must begin anew.
    pub fn check(&self) -> Result<(), LeftOut> {
        let taken = *self.taken.lock().expect("no holder panics");
        match taken {
            _ if self.is_deaf.load(Ordering::Acquire) => Err(LeftOut::Deaf),
            Some(taken) if taken.since.elapsed() >= LEFT_OUT => Err(LeftOut::NoAnswer),
            _ => Ok(()),
        }
    }

    /// `generation` is the group's, as long as this consumer is a member.
    fn note(&self, decision: Rebalance, generation: Option<i32>) {
        let mut taken = self.taken.lock().expect("no holder panics");
        match decision {
            Rebalance::Assign(_) => {
                // Once what was taken is let go, the rest is given in the same generation.
                if let Some(was) = taken.take().and_then(|taken| taken.generation)
                    && generation.is_some_and(|is| is != was)
                {
                    self.is_deaf.store(true, Ordering::Release);
                }
            }
            Rebalance::Revoke(_) => {
                let since = taken.map_or_else(Instant::now, |taken| taken.since);
                *taken = Some(Taken { since, generation });
            }
        }
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
        let is_member = !consumer.assignment_lost();
        let member = is_member.then(|| Member::of(consumer)).flatten();
        self.note(decision, member.map(|member| member.generation()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_left_out_once_the_group_gives_it_nothing_for_long() {
        let member = Membership::default();
        let long_ago = Instant::now().checked_sub(LEFT_OUT).expect("the machine runs for long");
        assert_eq!(member.check(), Ok(()), "it has just begun");
        member.note(Rebalance::Revoke(vec![1]), Some(4));
        assert_eq!(member.check(), Ok(()), "others may have to let theirs go");
        member.taken.lock().unwrap().as_mut().unwrap().since = long_ago;
        member.note(Rebalance::Revoke(vec![2]), Some(4));
        assert_eq!(member.check(), Err(LeftOut::NoAnswer));
        member.note(Rebalance::Assign(vec![]), Some(4));
        assert_eq!(member.check(), Ok(()), "it was given none, and that is an answer");
    }

    #[test]
    fn a_member_is_deaf_once_it_joined_again_before_it_let_go_what_the_group_took() {
        let member = Membership::default();
        member.note(Rebalance::Assign(vec![0, 1]), Some(4));
        member.note(Rebalance::Assign(vec![2]), Some(5));
        member.note(Rebalance::Revoke(vec![0]), Some(6));
        member.note(Rebalance::Assign(vec![]), Some(6));
        member.note(Rebalance::Assign(vec![3]), Some(7));
        member.note(Rebalance::Revoke(vec![1, 2, 3]), None);
        member.note(Rebalance::Assign(vec![4]), Some(9));
        assert_eq!(member.check(), Ok(()), "the group had lost it, and it comes back");
        member.note(Rebalance::Revoke(vec![4]), Some(10));
        member.note(Rebalance::Assign(vec![]), Some(11));
        assert_eq!(member.check(), Err(LeftOut::Deaf));
    }
}
