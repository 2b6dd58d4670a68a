use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers};
use tally_counts::Reject;
use tally_platform::config;

use crate::Error;
use crate::open_transactions::wait_for_open_transactions;
use crate::partition_reader::PartitionReaders;

/// The offsets of one partition's rejected messages, each with the reason that was given.
pub(crate) type Rejections = BTreeMap<i64, Reject>;

/// What is on the topic of rejected messages, as far as it was read.
#[derive(Default)]
pub(crate) struct RejectedTopic {
    /// By partition of the topic itself, the next offset to read.
    next: BTreeMap<i32, i64>,
    /// By partition of `increments`.
    pub(crate) by_partition: BTreeMap<i32, Rejections>,
    /// Messages that no aggregator wrote: they say nothing about any partition.
    pub(crate) strange: u64,
    /// Where the first of those is, and what it lacks.
    pub(crate) first_strange: Option<String>,
}

impl RejectedTopic {
    /// Reads on, up to where the topic ends now. Blocks the thread.
    ///
    /// All that was written in a transaction whose batch is in the ledger by now is included, even
    /// if its marker is not yet there: open transactions are waited for.
    pub(crate) fn read_on(
        &mut self,
        kafka: &config::Kafka,
        readers: &mut PartitionReaders,
    ) -> Result<(), Error> {
        let partitions = readers.partition_count(&kafka.rejected)?;
        wait_for_open_transactions(kafka, &kafka.rejected, partitions)?;
        let from = (0..partitions)
            .map(|partition| (partition, self.next.get(&partition).copied().unwrap_or(0)))
            .collect();
        let bounds = readers.read_all(&kafka.rejected, &from, |message| {
            self.take(&kafka.rejected, message);
            Ok(ControlFlow::Continue(()))
        })?;
        for (partition, bounds) in bounds {
            let (_, end) = bounds?;
            self.next.insert(partition, end);
        }
        Ok(())
    }

    fn take(&mut self, topic: &str, message: &BorrowedMessage<'_>) {
        match source(message) {
            Ok((source, offset, reason)) => {
                self.by_partition.entry(source).or_default().insert(offset, reason);
            }
            Err(header) => {
                self.strange += 1;
                self.first_strange.get_or_insert_with(|| {
                    format!(
                        "topic {topic}, partition {}, offset {}: header {header} is missing or \
                         not what the aggregator writes",
                        message.partition(),
                        message.offset()
                    )
                });
            }
        }
    }
}

/// Which message was rejected and why, or the name of the header that does not say it.
fn source(message: &BorrowedMessage<'_>) -> Result<(i32, i64, Reject), &'static str> {
    let text = |name: &'static str| {
        let header =
            message.headers().and_then(|headers| headers.iter().find(|header| header.key == name));
        header
            .and_then(|header| header.value)
            .and_then(|value| std::str::from_utf8(value).ok())
            .ok_or(name)
    };
    let (partition, offset, reason) =
        (text("tally.partition")?, text("tally.offset")?, text("tally.reason")?);
    Ok((
        partition.parse().map_err(|_| "tally.partition")?,
        offset.parse().map_err(|_| "tally.offset")?,
        reason.parse().map_err(|_| "tally.reason")?,
    ))
}
