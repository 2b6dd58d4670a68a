//! How far the counts are proven, as `tally reconciler watch` says: read from Kafka now and then,
//! and told as it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rdkafka::consumer::BaseConsumer;
use serde::Serialize;
use tally_counts::Position;
use tally_platform::config;
use tally_platform::quiet_log::QuietLog;
use tally_platform::verified::{self, Verified};
use tokio_util::sync::CancellationToken;

use crate::run::tell;
use crate::shared_memory::SharedMemory;
use crate::vector::number;

const CLIENT_ID: &str = "tally-reader-verified";
const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);

/// What was read last; `None` before the first time.
#[derive(Default)]
pub(crate) struct LastVerified(Mutex<Option<BTreeMap<i32, Verified>>>);

#[derive(Serialize)]
pub(crate) struct Answer {
    /// All messages before are proven to be counted as they must be.
    verified_through: String,
    partitions: Vec<Partition>,
}

#[derive(Serialize)]
struct Partition {
    partition: i32,
    agrees: bool,
    /// The next offset; nothing of a partition that does not agree is vouched for.
    verified_through: Option<i64>,
    /// When this was found.
    at: Option<Timestamp>,
    /// Kafka's time of the last message that is proven.
    through: Option<Timestamp>,
}

impl LastVerified {
    fn set(&self, said: BTreeMap<i32, Verified>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
    }

    pub(crate) fn answer(&self) -> Option<Answer> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = said.as_ref()?;
        let proven = said.iter().filter(|(_, said)| said.note.agrees);
        let position: Position =
            proven.map(|(partition, said)| (*partition, said.through)).collect();
        let partition = |(&partition, said): (&i32, &Verified)| {
            let Verified { through, note } = *said;
            Partition {
                partition,
                agrees: note.agrees,
                verified_through: note.agrees.then_some(through),
                at: Timestamp::from_millisecond(note.at_ms).ok(),
                through: note.through_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            }
        };
        let partitions = said.iter().map(partition).collect();
        Some(Answer { verified_through: position.to_string(), partitions })
    }
}

/// Reads what is said every few seconds, until `stop`.
pub(crate) async fn follow(
    kafka: &config::Kafka,
    memory: &SharedMemory,
    last: &LastVerified,
    stop: &CancellationToken,
) {
    let group = verified::group(&kafka.increments);
    let consumer = tally_kafka::consumer(&kafka.cluster(), CLIENT_ID, &group).create();
    let consumer: Arc<BaseConsumer> = match consumer {
        Ok(consumer) => Arc::new(consumer),
        Err(error) => {
            tracing::error!(%error, "no Kafka client: /v1/verified is not answered");
            return;
        }
    };
    let mut log = QuietLog::once();
    loop {
        let (consumer, increments) = (Arc::clone(&consumer), kafka.increments.clone());
        // There may be more than last time.
        let partitions = number(memory.partitions());
        let read = tokio::task::spawn_blocking(move || {
            verified::read(&consumer, &increments, partitions, TIMEOUT)
        });
        let Some(read) = stop.run_until_cancelled(read).await else { return };
        let read = read.expect("asking Kafka does not panic");
        tell(&mut log, "Kafka", read.as_ref().err().map(|error| error as _));
        if let Ok(said) = read {
            last.set(said);
        }
        if stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tally_platform::verified::Note;

    use super::*;

    #[test]
    fn nothing_of_a_partition_that_does_not_agree_is_vouched_for() {
        let last = LastVerified::default();
        assert!(last.answer().is_none());
        let said = |through, agrees| {
            let note = Note { agrees, at_ms: 1_767_225_600_000, through_ms: None };
            Verified { through, note }
        };
        last.set(BTreeMap::from([(0, said(7, true)), (2, said(0, false))]));
        let answer = serde_json::to_value(last.answer()).unwrap();
        let at = "2026-01-01T00:00:00Z";
        assert_eq!(
            answer,
            json!({
                "verified_through": "0:7",
                "partitions": [
                    {
                        "partition": 0, "agrees": true, "verified_through": 7, "at": at,
                        "through": null
                    },
                    {
                        "partition": 2, "agrees": false, "verified_through": null, "at": at,
                        "through": null
                    },
                ]
            })
        );
    }
}
