use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tally_kafka::MAX_TRANSACTION_MESSAGE_BYTES;
use tally_platform::config;

use super::{Error, Report};

const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a broker is asked about a topic that it has not heard of yet, and the pause between.
const METADATA_ATTEMPTS: usize = 50;
const METADATA_PAUSE: Duration = Duration::from_millis(100);

const CLEANUP: &str = "cleanup.policy";
const MAX_MESSAGE: &str = "max.message.bytes";

/// A batch of deltas is one message.
const DELTAS_MESSAGE_BYTES: u64 = 16 << 20;
/// A copy of a message is so much longer at most than the message: its headers say why it was
/// rejected.
const COPY_BYTES: u64 = 64 << 10;

/// How long a topic's messages must be allowed to be, and why.
struct Longest {
    bytes: u64,
    reason: String,
}

pub(super) async fn init(kafka: &config::Kafka, report: &mut Report) -> Result<(), Error> {
    let broker = |error: KafkaError| Error::Broker {
        bootstrap: kafka.bootstrap.clone(),
        reason: error.to_string(),
    };
    let admin: AdminClient<DefaultClientContext> =
        tally_kafka::client(&kafka.cluster(), "tally-init").create().map_err(broker)?;
    let topics = Topics { kafka, admin };
    topics.init(&kafka.increments, None, report).await?;
    let batch = Longest {
        bytes: DELTAS_MESSAGE_BYTES,
        reason: String::from("a batch of deltas is one message"),
    };
    topics.init(&kafka.deltas, Some(&batch), report).await?;
    let copy = topics.longest_copy().await?;
    topics.init(&kafka.rejected, Some(&copy), report).await
}

struct Topics<'k> {
    kafka: &'k config::Kafka,
    admin: AdminClient<DefaultClientContext>,
}

impl Topics<'_> {
    /// Makes the topic, or refuses one that is there and contradicts the configuration.
    async fn init(
        &self,
        topic: &str,
        longest: Option<&Longest>,
        report: &mut Report,
    ) -> Result<(), Error> {
        let config::Kafka { bootstrap, partitions, replication, .. } = self.kafka;
        let bytes = longest.map(|longest| longest.bytes.to_string());
        let mut new = NewTopic::new(topic, *partitions, TopicReplication::Fixed(*replication))
            .set(CLEANUP, "delete");
        if let Some(bytes) = &bytes {
            new = new.set(MAX_MESSAGE, bytes);
        }
        let made = self.admin.create_topics([&new], &options()).await.map_err(|error| {
            Error::Broker { bootstrap: bootstrap.clone(), reason: error.to_string() }
        })?;
        match made.into_iter().next() {
            Some(Ok(_)) => report.add(format!("topic {topic}: made, {partitions} partitions")),
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
                self.check(topic, longest).await?;
                report.add(format!("topic {topic}: there"));
            }
            Some(Err((_, code))) => return Err(refused(topic, code)),
            None => return Err(refused(topic, "no answer")),
        }
        Ok(())
    }

    async fn check(&self, topic: &str, longest: Option<&Longest>) -> Result<(), Error> {
        let have = self.partitions(topic).await.map_err(|error| refused(topic, error))?;
        if have != self.kafka.partitions {
            let want = self.kafka.partitions;
            return Err(refused(
                topic,
                format!("has {have} partitions, but kafka.partitions is {want}"),
            ));
        }
        let settings = self.settings(topic).await?;
        match settings.get(CLEANUP).and_then(|entry| entry.value.as_deref()) {
            Some("delete") => {}
            policy => {
                let policy = policy.unwrap_or("unknown");
                return Err(refused(
                    topic,
                    format!(
                        "its {CLEANUP} is {policy}: counts need every message, so it must be delete"
                    ),
                ));
            }
        }
        let Some(Longest { bytes, reason }) = longest else { return Ok(()) };
        let have = max_message_bytes(topic, &settings)?;
        if have < *bytes {
            return Err(refused(
                topic,
                format!(
                    "its {MAX_MESSAGE} is {have}, but {reason}: set it to {bytes} or more \
                     (kafka-configs.sh --alter --entity-type topics --entity-name {topic} \
                     --add-config {MAX_MESSAGE}={bytes})"
                ),
            ));
        }
        Ok(())
    }

    /// Whatever `increments` takes must be taken when it is rejected; and whatever the aggregator
    /// copies, since another compression may have made it shorter there.
    async fn longest_copy(&self) -> Result<Longest, Error> {
        let increments = &self.kafka.increments;
        self.partitions(increments).await.map_err(|error| refused(increments, error))?;
        let taken = max_message_bytes(increments, &self.settings(increments).await?)?;
        let bytes = taken.max(MAX_TRANSACTION_MESSAGE_BYTES as u64) + COPY_BYTES;
        let reason = format!(
            "copies of up to {MAX_TRANSACTION_MESSAGE_BYTES} bytes go there, \
             and the {MAX_MESSAGE} of {increments} is {taken}"
        );
        Ok(Longest { bytes, reason })
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
