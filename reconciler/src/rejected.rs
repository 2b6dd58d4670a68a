use std::collections::{BTreeMap, BTreeSet};

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers};
use tally_service::{config, kafka};

use crate::Error;
use crate::replay::{Until, replay};

/// The offsets of rejected messages, by source partition.
///
/// Whether a message can be counted may depend on what the registry knew at the time, so a replay does not decide it anew: the log
/// says what was rejected.
pub(crate) fn rejected_offsets(kafka: &config::Kafka) -> Result<BTreeMap<i32, BTreeSet<i64>>, Error> {
    let client: BaseConsumer =
        kafka::client(kafka, "tally-reconciler").create().map_err(Error::kafka("make a consumer"))?;
    let mut offsets: BTreeMap<i32, BTreeSet<i64>> = BTreeMap::new();
    for partition in 0..kafka::partition_count(client.client(), &kafka.rejected)? {
        replay(kafka, &kafka.rejected, partition, Until::End, |message| {
            let source = number::<i32>(message, "tally.partition")?;
            offsets.entry(source).or_default().insert(number::<i64>(message, "tally.offset")?);
            Ok(())
        })?;
    }
    Ok(offsets)
}

fn number<T: std::str::FromStr>(message: &BorrowedMessage<'_>, name: &'static str) -> Result<T, Error> {
    let header = message.headers().and_then(|headers| headers.iter().find(|header| header.key == name));
    let text = header.and_then(|header| header.value).and_then(|value| std::str::from_utf8(value).ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Error::RejectedHeader {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        header: name,
    })
}
