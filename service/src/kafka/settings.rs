use std::time::Duration;

use rdkafka::ClientConfig;

use crate::config;

/// The longest message that a topic of Tally holds: a batch of deltas.
const MAX_MESSAGE_BYTES: &str = "8388608";

/// A transaction that its owner left behind blocks readers for so long.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);

/// What every client has: the brokers, and the user's own properties.
pub fn client(kafka: &config::Kafka, client_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", client_id);
    for (name, value) in &kafka.properties {
        config.set(name, value);
    }
    config.set("bootstrap.servers", &kafka.bootstrap);
    config
}

/// A consumer that reads only what was committed, and starts only where it is told to: an offset that is not there is an
/// error, never a reason to jump.
pub fn consumer(kafka: &config::Kafka, client_id: &str, group: &str) -> ClientConfig {
    let mut config = client(kafka, client_id);
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("fetch.wait.max.ms", "50")
        .set("fetch.queue.backoff.ms", "10")
        // What is fetched ahead bounds the consumer's memory: a small message takes ten times its size there.
        .set("fetch.message.max.bytes", "1048576")
        .set("fetch.max.bytes", "16777216")
        .set("receive.message.max.bytes", "33554432")
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", "32768");
    config
}

/// A producer whose acknowledgements mean that every in-sync replica has the message, once.
pub fn producer(kafka: &config::Kafka, client_id: &str) -> ClientConfig {
    let mut config = client(kafka, client_id);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("message.max.bytes", MAX_MESSAGE_BYTES);
    config
}

/// A producer of transactions. Its id is the same after a restart, so that the broker ends what was left open.
pub fn transactional_producer(
    kafka: &config::Kafka,
    client_id: &str,
    transactional_id: &str,
) -> ClientConfig {
    let mut config = producer(kafka, client_id);
    let timeout_ms = TRANSACTION_TIMEOUT.as_millis().to_string();
    config
        .set("transactional.id", transactional_id)
        .set("transaction.timeout.ms", &timeout_ms)
        .set("message.timeout.ms", &timeout_ms)
        .set("linger.ms", "0");
    config
}
