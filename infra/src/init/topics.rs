mod requirement;

use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tally_kafka::MAX_TRANSACTION_MESSAGE_BYTES;
use tally_platform::config;

use super::{Error, Report};
use requirement::{Breach, Requirement, Want};

const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a broker is asked about a topic that it has not heard of yet, and the pause between.
const METADATA_ATTEMPTS: usize = 50;
const METADATA_PAUSE: Duration = Duration::from_millis(100);

const CLEANUP: &str = "cleanup.policy";
const RETENTION: &str = "retention.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const IN_SYNC: &str = "min.insync.replicas";
const TIMESTAMPS: &str = "message.timestamp.type";
const MAX_MESSAGE: &str = "max.message.bytes";

/// A batch of deltas is one message.
const DELTAS_MESSAGE_BYTES: u64 = 16 << 20;
/// A copy of a message is so much longer at most than the message: its headers say why it was
/// rejected.
const COPY_BYTES: u64 = 64 << 10;

/// How long ClickHouse may be away, or its backup old, and still be filled again from `deltas`.
const DELTAS_RETENTION_MS: u64 = 30 * 24 * 3600 * 1000;

/// Why the topics that services append to have the brokers' times.
const CLOCK_AHEAD: &str =
    "Kafka refuses what a service appends whose machine's clock is more than an hour ahead";

/// Returns whether batches of deltas are there already.
pub(super) async fn init(kafka: &config::Kafka, report: &mut Report) -> Result<bool, Error> {
    let broker = |error: KafkaError| Error::Broker {
        bootstrap: kafka.bootstrap.clone(),
        reason: error.to_string(),
    };
    let admin: AdminClient<DefaultClientContext> =
        tally_kafka::client(&kafka.cluster(), "tally-init").create().map_err(broker)?;
    let topics = Topics { kafka, admin };
    let all = kafka.partitions;
    topics.init(&kafka.increments, all, &of_increments(kafka), report).await?;
    let were_deltas_there = topics.init(&kafka.deltas, all, &of_deltas(kafka), report).await?;
    let copy = topics.longest_copy().await?;
    topics.init(&kafka.rejected, all, &of_rejected(kafka, copy), report).await?;
    topics.init(&kafka.checkpoints, 1, &of_checkpoints(kafka), report).await?;
    Ok(were_deltas_there && topics.has_messages(&kafka.deltas).await?)
}

fn of_increments(kafka: &config::Kafka) -> Vec<Requirement> {
    let mut requirements = of_log(kafka);
    requirements.push(brokers_time(
        "by the clock of a client that is wrong, or by the old times of a backfill, events are \
         rejected as future_event_time",
    ));
    requirements
}

fn of_deltas(kafka: &config::Kafka) -> Vec<Requirement> {
    let read_again = "what ClickHouse lacks, or loses, is read again from there";
    let mut requirements = of_all(kafka);
    requirements.extend([
        brokers_time(CLOCK_AHEAD),
        Requirement::told(RETENTION, Want::LastingAtLeast(DELTAS_RETENTION_MS), read_again),
        Requirement::told(RETENTION_BYTES, Want::Exactly("-1"), read_again),
        Requirement::refused(
            MAX_MESSAGE,
            Want::AtLeast(DELTAS_MESSAGE_BYTES),
            "a batch of deltas is one message",
        ),
    ]);
    requirements
}

fn of_rejected(kafka: &config::Kafka, longest_copy: Requirement) -> Vec<Requirement> {
    let mut requirements = of_log(kafka);
    requirements.extend([brokers_time(CLOCK_AHEAD), longest_copy]);
    requirements
}

fn of_checkpoints(kafka: &config::Kafka) -> Vec<Requirement> {
    let newest = "the newest checkpoint of each partition is needed, and no other";
    vec![Requirement::refused(CLEANUP, Want::Exactly("compact"), newest), in_sync(kafka)]
}

fn brokers_time(why: &'static str) -> Requirement {
    Requirement::told(TIMESTAMPS, Want::Exactly("LogAppendTime"), why)
}

/// Of the topics that a count is verified from.
fn of_log(kafka: &config::Kafka) -> Vec<Requirement> {
    let breach = if kafka.keep_log { Breach::Refused } else { Breach::Told };
    let kept = |setting| Requirement {
        setting,
        want: Want::Exactly("-1"),
        why: "a count can be verified from the beginning only while every message is there \
              (kafka.keep_log = false allows it)"
            .into(),
        breach,
    };
    let mut requirements = of_all(kafka);
    requirements.extend([kept(RETENTION), kept(RETENTION_BYTES)]);
    requirements
}

fn of_all(kafka: &config::Kafka) -> Vec<Requirement> {
    vec![
        Requirement::refused(CLEANUP, Want::Exactly("delete"), "counts need every message"),
        in_sync(kafka),
    ]
}

fn in_sync(kafka: &config::Kafka) -> Requirement {
    let least = u64::try_from(kafka.replication - 1).unwrap_or(0).max(1);
    Requirement::told(
        IN_SYNC,
        Want::AtLeast(least),
        "what fewer brokers have may be lost with them after it was acknowledged",
    )
}

struct Topics<'k> {
    kafka: &'k config::Kafka,
    admin: AdminClient<DefaultClientContext>,
}

impl Topics<'_> {
    /// Makes the topic, or refuses one that is there and contradicts the configuration. Returns
    /// whether it was there.
    async fn init(
        &self,
        topic: &str,
        partitions: i32,
        requirements: &[Requirement],
        report: &mut Report,
    ) -> Result<bool, Error> {
        let config::Kafka { bootstrap, replication, .. } = self.kafka;
        let values: Vec<String> = requirements.iter().map(Requirement::value).collect();
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(*replication));
        let new = requirements
            .iter()
            .zip(&values)
            .fold(new, |new, (requirement, value)| new.set(requirement.setting, value));
        let made = self.admin.create_topics([&new], &options()).await.map_err(|error| {
            Error::Broker { bootstrap: bootstrap.clone(), reason: error.to_string() }
        })?;
        match made.into_iter().next() {
            Some(Ok(_)) => {
                report.add(format!("topic {topic}: made, {partitions} partitions"));
                Ok(false)
            }
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
                let told = self.check(topic, partitions, requirements).await?;
                report.add(format!("topic {topic}: there"));
                for difference in told {
                    report.add(format!("topic {topic}: warning: {difference}"));
                }
                Ok(true)
            }
            Some(Err((_, code))) => Err(refused(topic, code)),
            None => Err(refused(topic, "no answer")),
        }
    }

    /// Returns the differences that are only told.
    async fn check(
        &self,
        topic: &str,
        want: i32,
        requirements: &[Requirement],
    ) -> Result<Vec<String>, Error> {
        let have = self.partitions(topic).await.map_err(|error| refused(topic, error))?;
        if have != want {
            let configured = if topic == self.kafka.checkpoints {
                String::from("checkpoints need one")
            } else {
                format!("kafka.partitions is {want}")
            };
            return Err(refused(topic, format!("has {have} partitions, but {configured}")));
        }
        let settings = self.settings(topic).await?;
        let (mut refusals, mut told) = (Vec::new(), Vec::new());
        for requirement in requirements {
            let entry = settings.get(requirement.setting);
            let have = entry.and_then(|entry| entry.value.as_deref());
            if !requirement.is_met_by(have) {
                let difference = requirement.difference(&self.kafka.bootstrap, topic, have);
                match requirement.breach {
                    Breach::Refused => refusals.push(difference),
                    Breach::Told => told.push(difference),
                }
            }
        }
        if refusals.is_empty() { Ok(told) } else { Err(refused(topic, refusals.join("; and "))) }
    }

    /// Whatever `increments` takes must be taken when it is rejected; and whatever the aggregator
    /// copies, since another compression may have made it shorter there.
    async fn longest_copy(&self) -> Result<Requirement, Error> {
        let increments = &self.kafka.increments;
        self.partitions(increments).await.map_err(|error| refused(increments, error))?;
        let taken = max_message_bytes(increments, &self.settings(increments).await?)?;
        let bytes = taken.max(MAX_TRANSACTION_MESSAGE_BYTES as u64) + COPY_BYTES;
        let why = format!(
            "copies of up to {MAX_TRANSACTION_MESSAGE_BYTES} bytes go there, \
             and the {MAX_MESSAGE} of {increments} is {taken}"
        );
        Ok(Requirement::refused(MAX_MESSAGE, Want::AtLeast(bytes), &why))
    }

    /// How many partitions a topic has that the controller says is there. The broker that is asked
    /// may hear of it later.
    async fn partitions(&self, topic: &str) -> Result<i32, tally_kafka::TopicError> {
        let mut attempts = 0;
        loop {
            match tally_kafka::partition_count(self.admin.inner(), topic) {
                Err(tally_kafka::TopicError::Missing { .. }) if attempts < METADATA_ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(METADATA_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Whether the topic has messages, or had some.
    async fn has_messages(&self, topic: &str) -> Result<bool, Error> {
        let partitions = self.partitions(topic).await.map_err(|error| refused(topic, error))?;
        let (mut partition, mut attempts) = (0, 0);
        while partition < partitions {
            match tally_kafka::watermarks(self.admin.inner(), topic, partition) {
                Ok((_, 1..)) => return Ok(true),
                Ok(_) => partition += 1,
                // The broker that is asked may not know of the topic yet.
                Err(_) if attempts < METADATA_ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(METADATA_PAUSE).await;
                }
                Err(error) => return Err(refused(topic, error)),
            }
        }
        Ok(false)
    }

    async fn settings(&self, topic: &str) -> Result<ConfigResource, Error> {
        let described = self
            .admin
            .describe_configs([&ResourceSpecifier::Topic(topic)], &options())
            .await
            .map_err(|error| refused(topic, error))?;
        match described.into_iter().next() {
            Some(Ok(settings)) => Ok(settings),
            Some(Err(code)) => Err(refused(topic, code)),
            None => Err(refused(topic, "no answer")),
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(CALL_TIMEOUT)).operation_timeout(Some(CALL_TIMEOUT))
}

fn refused(topic: &str, reason: impl ToString) -> Error {
    Error::Topic { topic: topic.to_owned(), reason: reason.to_string() }
}

fn max_message_bytes(topic: &str, settings: &ConfigResource) -> Result<u64, Error> {
    let value = settings.get(MAX_MESSAGE).and_then(|entry| entry.value.as_deref());
    value
        .and_then(|bytes| bytes.parse().ok())
        .ok_or_else(|| refused(topic, format!("its {MAX_MESSAGE} is {value:?}, not a number")))
}
