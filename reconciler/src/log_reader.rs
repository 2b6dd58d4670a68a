//! Reads partitions of `increments` side by side, the way the aggregator reads them: straight from
//! the brokers where connections are plain, with every checksum looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_counts::next_offset;
use tally_kafka::{FetchedMessage, Fetcher, Membership, Unreadable};
use tally_platform::config::Config;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// Without a message for so long, something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(1);
/// How often librdkafka is given the time to serve its own events, in messages.
const SERVE_EVERY: u64 = 1 << 16;

/// What comes of a partition.
pub(crate) enum Read<'m> {
    Message(FetchedMessage<'m>),
    /// The partition cannot be read on; the others can.
    Unreadable(Unreadable),
}

pub(crate) struct LogReader {
    topic: String,
    fetcher: Fetcher,
    /// For each partition that is still read, the next offset, and the one where reading ends. The
    /// message before the end is in Kafka.
    left: BTreeMap<i32, (i64, i64)>,
    stop: CancellationToken,
    /// Dropped after the fetcher, which asks it for the brokers.
    consumer: Arc<BaseConsumer<Membership>>,
}

impl LogReader {
    /// Reads each partition from its first offset up to its second one, or until `stop`.
    pub(crate) fn new(
        config: &Config,
        ranges: &BTreeMap<i32, (i64, i64)>,
        runtime: &Handle,
        stop: &CancellationToken,
    ) -> Result<LogReader, Error> {
        let (cluster, name) = (config.kafka.cluster(), "tally-reconciler");
        // The group is only a name here: it is not joined, and nothing is committed.
        let consumer: Arc<BaseConsumer<Membership>> = Arc::new(
            tally_kafka::consumer(&cluster, name, name)
                .create_with_context(Membership::default())
                .map_err(Error::kafka("make a consumer"))?,
        );
        let topic = config.kafka.increments.clone();
        let topic_id = tally_kafka::topic_id(consumer.client(), &topic)?;
        let fetch = config.reconciler.fetch;
        let mut fetcher =
            Fetcher::new(&cluster, fetch, &consumer, &topic, &topic_id, name, runtime);
        let left: BTreeMap<i32, (i64, i64)> = ranges
            .iter()
            .filter(|(_, (from, to))| from < to)
            .map(|(partition, range)| (*partition, *range))
            .collect();
        let starts: Vec<(i32, i64)> = left.iter().map(|(p, (from, _))| (*p, *from)).collect();
        fetcher.start(&starts).map_err(Error::kafka("start reading"))?;
        Ok(LogReader { topic, fetcher, left, stop: stop.clone(), consumer })
    }

    /// Hands out every message, until each partition is read to its end or cannot be read on.
    /// Blocks the thread; partitions that nothing comes of for half a minute cannot be read on.
    /// [`Error::Stopped`] once it is to stop.
    pub(crate) fn read(
        mut self,
        mut each: impl FnMut(Read<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (mut messages, mut last_message) = (0_u64, Instant::now());
        while !self.left.is_empty() {
            let (partition, has_ended) = match self.fetcher.fetch() {
                Some(Ok(message)) => {
                    let FetchedMessage { partition, offset, .. } = message;
                    let Some((next, to)) = self.left.get_mut(&partition) else { continue };
                    *next = next_offset(offset);
                    let has_ended = *next >= *to;
                    if offset < *to {
                        each(Read::Message(message))?;
                    }
                    messages += 1;
                    if messages.is_multiple_of(SERVE_EVERY) {
                        last_message = Instant::now();
                        self.serve()?;
                    }
                    (partition, has_ended)
                }
                Some(Err(unreadable)) => {
                    let partition = unreadable.partition;
                    each(Read::Unreadable(unreadable))?;
                    (partition, true)
                }
                None => {
                    if messages > 0 {
                        (messages, last_message) = (0, Instant::now());
                    }
                    if last_message.elapsed() > PATIENCE {
                        return self.give_up(each);
                    }
                    self.serve()?;
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            if has_ended {
                self.fetcher.stop(partition);
                self.left.remove(&partition);
            }
        }
        Ok(())
    }

    /// Says of each partition that is left that Kafka does not give it.
    fn give_up(self, mut each: impl FnMut(Read<'_>) -> Result<(), Error>) -> Result<(), Error> {
        for (partition, (at, to)) in self.left {
            let topic = self.topic.clone();
            let stuck = Error::Stuck { topic, partition, at, to, seconds: PATIENCE.as_secs() };
            let reason = stuck.to_string();
            each(Read::Unreadable(Unreadable { partition, out_of_range: None, reason }))?;
        }
        Ok(())
    }

    fn serve(&self) -> Result<(), Error> {
        if self.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        if let Some(Err(error)) = self.consumer.poll(Duration::ZERO) {
            let topic = &self.topic;
            tracing::warn!(%error, topic, "trouble with a Kafka broker; librdkafka reconnects");
        }
        Ok(())
    }
}
