//! Whether the log is still the one that the sink began with, and still has what is to be read next.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_service::kafka::{self, Membership, TopicError};

use crate::Error;
use crate::broken::Broken;
use crate::consumer::Sink;

/// How often the topic's id is asked for, and how long the answer may keep everything else waiting.
const TOPIC_INTERVAL: Duration = Duration::from_secs(10);
const TOPIC_TIMEOUT: Duration = Duration::from_secs(1);

impl Sink<'_> {
    /// Now and then, since librdkafka reads on from a topic that was made anew as if nothing had happened.
    pub(crate) fn watch_topic(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        if Instant::now() < self.topic_due {
            return Ok(());
        }
        let topic = &self.config.kafka.deltas;
        let asked = kafka::topic_id_within(consumer.client(), topic, TOPIC_TIMEOUT);
        self.topic_due = Instant::now() + TOPIC_INTERVAL;
        self.judge_topic(asked.map(Some))
    }

    /// A topic of the same name that was made anew has other batches at the same offsets.
    pub(crate) fn check_topic(&self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        let topic = &self.config.kafka.deltas;
        let asked = kafka::patiently(self.stop, || {
            self.heartbeat.beat();
            kafka::topic_id(consumer.client(), topic)
        });
        self.judge_topic(asked)
    }

    fn judge_topic(&self, asked: Result<Option<String>, TopicError>) -> Result<(), Error> {
        match asked {
            Ok(Some(is)) if is != self.topic_id => {
                let topic = self.config.kafka.deltas.clone();
                return Err(Error::TopicReplaced { topic, was: self.topic_id.clone(), is });
            }
            Ok(_) => {}
            // It may be made again, or a broker may not know of it yet.
            Err(error @ TopicError::Missing { .. }) => tracing::error!(%error, "the topic is gone"),
            Err(error @ TopicError::Unavailable { .. }) => tracing::debug!(%error, "ask for the topic later"),
        }
        Ok(())
    }

    /// Stops the partitions whose next offset is not in the log; asks again later if the brokers do not say. librdkafka stops
    /// reading such a partition, but does not tell which one it is.
    pub(crate) fn look_for_gone(&mut self, consumer: &BaseConsumer<Membership>) -> Result<(), Error> {
        if !self.is_offset_gone {
            return Ok(());
        }
        self.check_topic(consumer)?;
        let mut gone = Vec::new();
        for (partition, lane) in &self.lanes {
            self.heartbeat.beat();
            let (offset, topic) = (lane.next, &self.config.kafka.deltas);
            match kafka::watermarks(consumer.client(), topic, *partition) {
                Ok((first, end)) if (first..=end).contains(&offset) => {}
                Ok((first, end)) => gone.push((*partition, Broken::Gone { offset, first, end })),
                Err(error) => {
                    tracing::warn!(%error, "ask again which offsets the log has");
                    return Ok(());
                }
            }
        }
        self.is_offset_gone = false;
        if gone.is_empty() {
            tracing::warn!("an offset was not in the log, but every partition's is: read all of them again");
            self.restart_all();
        }
        for (partition, broken) in &gone {
            self.give_up(consumer, *partition, broken)?;
        }
        Ok(())
    }
}
