use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tally_service::config;
use tally_service::kafka;

use super::{Error, Report};

const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a broker is asked about a topic that it has not heard of yet, and the pause between.
const METADATA_ATTEMPTS: usize = 50;
const METADATA_PAUSE: Duration = Duration::from_millis(100);

/// A batch of deltas is one message.
const DELTAS_MESSAGE_BYTES: &str = "8388608";

pub(super) async fn init(kafka: &config::Kafka, report: &mut Report) -> Result<(), Error> {
    let broker =
        |error: KafkaError| Error::Broker { bootstrap: kafka.bootstrap.clone(), reason: error.to_string() };
    let admin: AdminClient<DefaultClientContext> =
        kafka::client(kafka, "tally-init").create().map_err(broker)?;
    for topic in [&kafka.increments, &kafka.deltas, &kafka.rejected] {
        let mut new = NewTopic::new(topic, kafka.partitions, TopicReplication::Fixed(kafka.replication))
            .set("cleanup.policy", "delete");
        if topic == &kafka.deltas {
            new = new.set("max.message.bytes", DELTAS_MESSAGE_BYTES);
        }
        let made = admin.create_topics([&new], &options()).await.map_err(broker)?;
        match made.into_iter().next() {
            Some(Ok(_)) => report.add(format!("topic {topic}: made, {} partitions", kafka.partitions)),
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
                check(&admin, kafka, topic).await?;
                report.add(format!("topic {topic}: there"));
            }
            Some(Err((_, code))) => {
                return Err(Error::Topic { topic: topic.clone(), reason: code.to_string() });
            }
            None => {
                return Err(Error::Topic { topic: topic.clone(), reason: String::from("no answer") });
            }
        }
    }
    Ok(())
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(CALL_TIMEOUT)).operation_timeout(Some(CALL_TIMEOUT))
}

/// How many partitions a topic has that the controller says is there. The broker that is asked may hear of it later.
async fn partitions(
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
) -> Result<i32, kafka::TopicError> {
    let mut attempts = 0;
    loop {
        match kafka::partition_count(admin.inner(), topic) {
            Err(kafka::TopicError::Missing { .. }) if attempts < METADATA_ATTEMPTS => {
                attempts += 1;
                tokio::time::sleep(METADATA_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Refuses a topic that is there and contradicts the configuration.
async fn check(
    admin: &AdminClient<DefaultClientContext>,
    kafka: &config::Kafka,
    topic: &str,
) -> Result<(), Error> {
    let refuse = |reason: String| Error::Topic { topic: topic.to_owned(), reason };
    let have = partitions(admin, topic).await.map_err(|error| refuse(error.to_string()))?;
    if have != kafka.partitions {
        let want = kafka.partitions;
        return Err(refuse(format!("has {have} partitions, but kafka.partitions is {want}")));
    }
    let described = admin
        .describe_configs([&ResourceSpecifier::Topic(topic)], &options())
        .await
        .map_err(|error| refuse(error.to_string()))?;
    let resource = match described.into_iter().next() {
        Some(Ok(resource)) => resource,
        Some(Err(code)) => return Err(refuse(code.to_string())),
        None => return Err(refuse(String::from("no answer"))),
    };
    let value = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref());
    match value("cleanup.policy") {
        Some("delete") => {}
        policy => {
            let policy = policy.unwrap_or("unknown");
            return Err(refuse(format!(
                "its cleanup.policy is {policy}: counts need every message, so it must be delete"
            )));
        }
    }
    if topic == kafka.deltas {
        let limit = value("max.message.bytes").and_then(|bytes| bytes.parse::<u64>().ok());
        if limit.is_none_or(|bytes| bytes < 8 << 20) {
            return Err(refuse(format!(
                "its max.message.bytes is {limit:?}: a batch of deltas may need {DELTAS_MESSAGE_BYTES}"
            )));
        }
    }
    Ok(())
}
