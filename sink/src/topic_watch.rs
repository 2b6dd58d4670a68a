//! Whether the topic is still the one that the sink began with, and still has what is to be read
//! next.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_kafka::{Membership, TopicError, Unreadable};
use tally_platform::retry::until_brokers_answer;

use crate::Error;
use crate::consumer_thread::ConsumerThread;
use crate::partition_error::PartitionError;

/// How often the topic's id is asked for, and how long the answer may keep everything else waiting.
const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct TopicWatch<'c> {
    consumer: &'c BaseConsumer<Membership>,
    topic: &'c str,
    topic_id: String,
    next_look: Instant,
}

impl<'c> TopicWatch<'c> {
    /// Waits for the brokers, and takes the id that the topic has now as the one that it must keep;
    /// `None` once the sink is to stop.
    pub(crate) fn begin(
        consumer: &'c BaseConsumer<Membership>,
        topic: &'c str,
        thread: &ConsumerThread<'_>,
    ) -> Result<Option<TopicWatch<'c>>, Error> {
        let topic_id = patient_topic_id(consumer, topic, thread)?;
        Ok(topic_id.map(|topic_id| TopicWatch {
            consumer,
            topic,
            topic_id,
            next_look: Instant::now(),
        }))
    }

    /// The topic's name.
    pub(crate) fn topic(&self) -> &'c str {
        self.topic
    }

    /// How many partitions the topic has. Waits for the brokers; `None` once the sink is to stop.
    pub(crate) fn partitions(&self, thread: &ConsumerThread<'_>) -> Result<Option<i32>, Error> {
        let partitions = until_brokers_answer(thread.stop, || {
            thread.heartbeat.beat();
            self.partitions_now()
        });
        Ok(partitions?)
    }

    /// How many partitions the topic has, if the brokers answer.
    pub(crate) fn partitions_now(&self) -> Result<i32, TopicError> {
        tally_kafka::partition_count(self.consumer.client(), self.topic)
    }

    /// The id that the topic had at the beginning, as librdkafka prints it.
    pub(crate) fn topic_id(&self) -> &str {
        &self.topic_id
    }

    /// Asks for the topic's id every ten seconds: librdkafka reads on from a topic that was made
    /// anew as if nothing had happened, and the fetcher that goes without librdkafka waits for the
    /// old topic.
    pub(crate) fn look_if_due(&mut self) -> Result<(), Error> {
        if Instant::now() < self.next_look {
            return Ok(());
        }
        let asked = tally_kafka::topic_id_within(self.consumer.client(), self.topic, TIMEOUT);
        self.next_look = Instant::now() + INTERVAL;
        self.judge(asked.map(Some))
    }

    /// Asks for the topic's id now, and waits for the answer. A topic of the same name that was
    /// made anew has other batches at the same offsets.
    pub(crate) fn look(&self, thread: &ConsumerThread<'_>) -> Result<(), Error> {
        self.judge(patient_topic_id(self.consumer, self.topic, thread))
    }

    fn judge(&self, asked: Result<Option<String>, TopicError>) -> Result<(), Error> {
        match asked {
            Ok(Some(is)) if is != self.topic_id => {
                let (topic, was) = (self.topic.to_owned(), self.topic_id.clone());
                return Err(Error::TopicReplaced { topic, was, is });
            }
            Ok(_) => {}
            // It may be made again, or a broker may not know of it yet.
            Err(error @ TopicError::Missing { .. }) => {
                tracing::error!(%error, "the topic is not in Kafka; waiting for it");
            }
            Err(error @ TopicError::Unavailable { .. }) => {
                tracing::debug!(%error, "Kafka does not tell the topic's id; asking again later");
            }
        }
        Ok(())
    }

    /// Why a partition that cannot be read must stop; `None` if it is worth another try from the
    /// ledger's position.
    pub(crate) fn reason_to_stop(&self, unreadable: Unreadable) -> Option<PartitionError> {
        let Unreadable { partition, out_of_range, reason } = unreadable;
        let Some(offset) = out_of_range else { return Some(PartitionError::Unreadable { reason }) };
        match tally_kafka::watermarks(self.consumer.client(), self.topic, partition) {
            Ok((first, end)) if (first..=end).contains(&offset) => {
                tracing::warn!(
                    partition,
                    offset,
                    first,
                    end,
                    "Kafka did not have the offset, and now it has; reading the partition again"
                );
                None
            }
            Ok((first, end)) => Some(PartitionError::Gone { offset, first, end }),
            Err(error) => {
                tracing::warn!(
                    %error,
                    partition,
                    offset,
                    "Kafka does not have the offset, and does not tell which ones it has; \
                     reading the partition again"
                );
                None
            }
        }
    }
}

fn patient_topic_id(
    consumer: &BaseConsumer<Membership>,
    topic: &str,
    thread: &ConsumerThread<'_>,
) -> Result<Option<String>, TopicError> {
    until_brokers_answer(thread.stop, || {
        thread.heartbeat.beat();
        tally_kafka::topic_id(consumer.client(), topic)
    })
}
