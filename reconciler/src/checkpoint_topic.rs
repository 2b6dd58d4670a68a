//! The topic that checkpoints are kept on: one partition, compacted, by the number of the partition
//! that a checkpoint is of.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rdkafka::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tally_platform::checkpoint_key::CheckpointKey;
use tally_platform::config::{self, Config};

use crate::Error;
use crate::checkpoint::{Checkpoint, Expected};
use crate::partition_reader::PartitionReaders;
use crate::verify::blocking;

/// How long Kafka may take to acknowledge a checkpoint.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checkpoints that are believed, and how many are not.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    /// The newest of each partition of `increments`.
    pub(crate) newest: BTreeMap<i32, Checkpoint>,
    pub(crate) refused: u64,
    /// Where the first of those is, and why it is refused.
    pub(crate) first_refused: Option<String>,
}

impl Checkpoints {
    /// Takes a line of a file or topic. An older checkpoint behind a newer one is refused: somebody
    /// has sent it once more.
    pub(crate) fn take(&mut self, line: &[u8], expected: &Expected<'_>, at: impl Fn() -> String) {
        let opened = Checkpoint::open(line, expected).and_then(|checkpoint| {
            match self.newest.get(&checkpoint.partition) {
                Some(newer) if newer.position > checkpoint.position => Err(format!(
                    "it is of offset {}, and one of offset {} came before it",
                    checkpoint.position, newer.position
                )),
                _ => Ok(checkpoint),
            }
        });
        match opened {
            Ok(checkpoint) => {
                self.newest.insert(checkpoint.partition, checkpoint);
            }
            Err(reason) => {
                self.refused += 1;
                self.first_refused.get_or_insert_with(|| format!("{}: {reason}", at()));
            }
        }
    }
}

/// Reads the checkpoints that are there. Blocks the thread.
pub(crate) fn read(kafka: &config::Kafka, expected: &Expected<'_>) -> Result<Checkpoints, Error> {
    let topic = &kafka.checkpoints;
    let mut readers = PartitionReaders::new(kafka)?;
    let mut reader = readers.read_from_the_first(topic, 0)?;
    let mut checkpoints = Checkpoints::default();
    while let Some(message) = reader.next()? {
        // Without a payload it says that there is no checkpoint: that removes nothing.
        let Some(line) = message.payload() else { continue };
        let offset = message.offset();
        checkpoints.take(line, expected, || format!("topic {topic}, offset {offset}"));
    }
    Ok(checkpoints)
}

/// Reads exported checkpoints, a line each.
pub(crate) fn read_file(file: &Path, expected: &Expected<'_>) -> Result<Checkpoints, Error> {
    let text = std::fs::read_to_string(file)
        .map_err(|reason| Error::CheckpointsFile { file: file.to_owned(), reason })?;
    let mut checkpoints = Checkpoints::default();
    for (at, line) in text.lines().enumerate() {
        checkpoints.take(line.as_bytes(), expected, || format!("{}:{}", file.display(), at + 1));
    }
    Ok(checkpoints)
}

/// The newest checkpoint of each partition as a line that a file can hold.
pub async fn export(config: &Config) -> Result<String, Error> {
    let config = config.clone();
    blocking(move || {
        let file = config.reconciler.key_file.as_deref().ok_or(Error::NoKey)?;
        let key = CheckpointKey::read(file)?;
        let topic_id = PartitionReaders::new(&config.kafka)?.topic_id(&config.kafka.increments)?;
        let expected = Expected { key: &key, topic_id: &topic_id, rules: config.rules() };
        let checkpoints = read(&config.kafka, &expected)?;
        Ok(checkpoints.newest.values().map(|one| one.sign(&key) + "\n").collect())
    })
    .await
}

/// Signs and keeps checkpoints.
pub(crate) async fn append(
    kafka: &config::Kafka,
    key: &CheckpointKey,
    checkpoints: &[Checkpoint],
) -> Result<(), Error> {
    let producer: FutureProducer = tally_kafka::producer(&kafka.cluster(), "tally-reconciler")
        .create()
        .map_err(Error::kafka("make a producer"))?;
    for checkpoint in checkpoints {
        let (line, partition) = (checkpoint.sign(key), checkpoint.partition.to_string());
        let record =
            FutureRecord::to(&kafka.checkpoints).partition(0).key(&partition).payload(&line);
        let delivery = producer
            .send(record, PATIENCE)
            .await
            .map_err(|(source, _)| Error::Kafka { what: "keep a checkpoint", source })?;
        tally_kafka::appended_at(delivery.offset).ok_or(Error::CheckpointNotKept)?;
    }
    Ok(())
}
