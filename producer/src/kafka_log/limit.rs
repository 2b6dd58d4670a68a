use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("ask for the topic's configuration")]
    Ask(#[source] KafkaError),
    #[error("the broker does not tell the topic's configuration: {0}")]
    Refused(RDKafkaErrorCode),
    #[error("the topic's {MAX_MESSAGE_BYTES} is {0:?}, not a number")]
    NotANumber(Option<String>),
}

/// How long the topic's messages may be. Changed later, it is known here after a restart.
pub(super) async fn max_message_bytes(config: &ClientConfig, topic: &str) -> Result<usize, Error> {
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(Error::Ask)?;
    let options = AdminOptions::new()
        .request_timeout(Some(CALL_TIMEOUT))
        .operation_timeout(Some(CALL_TIMEOUT));
    let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await;
    let mut value = None;
    for resource in described.map_err(Error::Ask)? {
        let resource = resource.map_err(Error::Refused)?;
        value = resource.get(MAX_MESSAGE_BYTES).and_then(|entry| entry.value.clone());
    }
    value.as_deref().and_then(|text| text.parse().ok()).ok_or(Error::NotANumber(value))
}
