use std::collections::BTreeMap;

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers};
use tally_counts::Reject;
use tally_platform::config;

use crate::Error;
use crate::replay::{Until, replay};
use crate::settled::settled;

/// By offset.
pub(crate) type Rejected = BTreeMap<i64, Reject>;

/// The rejected messages and why, by source partition.
///
/// Whether a message can be counted may depend on what the registry knew at the time, so a replay
/// does not decide it anew: the log says what was rejected. What a transaction wrote that is in the
/// ledger by now is among them, its marker here or not.
pub(crate) fn rejected_messages(kafka: &config::Kafka) -> Result<BTreeMap<i32, Rejected>, Error> {
    let client: BaseConsumer = tally_kafka::client(&kafka.cluster(), "tally-reconciler")
        .create()
        .map_err(Error::kafka("make a consumer"))?;
    let mut rejected: BTreeMap<i32, Rejected> = BTreeMap::new();
    let partitions = tally_kafka::partition_count(client.client(), &kafka.rejected)?;
    settled(kafka, &kafka.rejected, partitions)?;
    for partition in 0..partitions {
        replay(kafka, &kafka.rejected, partition, Until::End, |message| {
            let source = header(message, "tally.partition", |text| text.parse::<i32>().ok())?;
            let offset = header(message, "tally.offset", |text| text.parse::<i64>().ok())?;
            let reason = header(message, "tally.reason", |text| text.parse::<Reject>().ok())?;
            rejected.entry(source).or_default().insert(offset, reason);
            Ok(())
        })?;
    }
    Ok(rejected)
}

fn header<T>(
    message: &BorrowedMessage<'_>,
    name: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, Error> {
    let header =
        message.headers().and_then(|headers| headers.iter().find(|header| header.key == name));
    let text =
        header.and_then(|header| header.value).and_then(|value| std::str::from_utf8(value).ok());
    text.and_then(parse).ok_or_else(|| Error::RejectedHeader {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        header: name,
    })
}
