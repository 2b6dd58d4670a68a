use std::collections::BTreeMap;

use rdkafka::Message;
use rdkafka::consumer::Consumer;
use rdkafka::message::{BorrowedMessage, Headers};
use tally_counts::Reject;
use tally_platform::config;

use crate::Error;
use crate::open_transactions::wait_for_open_transactions;
use crate::partition_reader::{PartitionReader, Until, kafka_client};

/// The offsets of one partition's rejected messages, each with its reason.
pub(crate) type RejectReasons = BTreeMap<i64, Reject>;

/// Reads the topic of rejected messages, by partition of `increments`. Blocks the thread.
///
/// Whether a message can be counted may depend on what the registry knew at the time, so a replay
/// does not decide it again: Kafka says what was rejected. All that was written in a transaction
/// whose batch is in the ledger by now is included, even if its marker is not yet there: open
/// transactions are waited for.
pub(crate) fn read_reject_reasons(
    kafka: &config::Kafka,
) -> Result<BTreeMap<i32, RejectReasons>, Error> {
    let mut reasons: BTreeMap<i32, RejectReasons> = BTreeMap::new();
    let partitions = tally_kafka::partition_count(kafka_client(kafka)?.client(), &kafka.rejected)?;
    wait_for_open_transactions(kafka, &kafka.rejected, partitions)?;
    for partition in 0..partitions {
        let mut reader = PartitionReader::new(kafka, &kafka.rejected, partition, Until::End)?;
        while let Some(message) = reader.next()? {
            let source = header(&message, "tally.partition", |text| text.parse::<i32>().ok())?;
            let offset = header(&message, "tally.offset", |text| text.parse::<i64>().ok())?;
            let reason = header(&message, "tally.reason", |text| text.parse::<Reject>().ok())?;
            reasons.entry(source).or_default().insert(offset, reason);
        }
    }
    Ok(reasons)
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
