//! Whether the log is still the one that the sink began with, and still has what is to be read
//! next.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use tally_kafka::{TopicError, Unreadable};
use tally_platform::retry::until_brokers_answer;

use crate::Error;
use crate::broken::Broken;
use crate::consumer::Sink;

/// How often the topic's id is asked for, and how long the answer may keep everything else waiting.
const TOPIC_INTERVAL: Duration = Duration::from_secs(10);
const TOPIC_TIMEOUT: Duration = Duration::from_secs(1);
/// Before a partition is read again that could not be read.
const UNREADABLE_RETRY: Duration = Duration::from_millis(500);

impl Sink<'_> {
    /// Now and then, since librdkafka reads on from a topic that was made anew as if nothing had
    /// happened, and what fetches without it waits for the old one.
    pub(crate) fn watch_topic(&mut self) -> Result<(), Error> {
        if Instant::now() < self.topic_due {
            return Ok(());
        }
        let topic = &self.config.kafka.deltas;
        let asked = tally_kafka::topic_id_within(self.consumer.client(), topic, TOPIC_TIMEOUT);
        self.topic_due = Instant::now() + TOPIC_INTERVAL;
        self.judge_topic(asked.map(Some))
    }

    /// A topic of the same name that was made anew has other batches at the same offsets.
    pub(crate) fn check_topic(&self) -> Result<(), Error> {
        let topic = &self.config.kafka.deltas;
        let asked = until_brokers_answer(self.stop, || {
            self.heartbeat.beat();
            tally_kafka::topic_id(self.consumer.client(), topic)
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
            Err(error @ TopicError::Unavailable { .. }) => {
                tracing::debug!(%error, "ask for the topic later")
            }
        }
        Ok(())
    }

    /// Stops a partition that cannot be read on, unless the log has changed its mind meanwhile.
    pub(crate) fn judge_unreadable(&mut self, unreadable: Unreadable) -> Result<(), Error> {
        self.check_topic()?;
        let Unreadable { partition, out_of_range, reason } = unreadable;
        let Some(lane) = self.lanes.get(&partition) else { return Ok(()) };
        let Some(offset) = out_of_range else {
            self.give_up(partition, &Broken::Unreadable { reason });
            return Ok(());
        };
        let topic = &self.config.kafka.deltas;
        match tally_kafka::watermarks(self.consumer.client(), topic, partition) {
            Ok((first, end)) if (first..=end).contains(&offset) => {
                tracing::warn!(
                    partition,
                    offset,
                    first,
                    end,
                    "an offset was not in the log, and now it is"
                );
            }
            Ok((first, end)) => {
                self.give_up(partition, &Broken::Gone { offset, first, end });
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(%error, partition, "an offset is not in the log, and which are is not known");
            }
        }
        lane.halt();
        self.pause(UNREADABLE_RETRY);
        Ok(())
    }
}
