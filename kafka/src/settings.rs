use std::time::Duration;

use rdkafka::ClientConfig;

use crate::Cluster;

/// The longest message of increments that is appended here; a topic may allow less.
const MAX_MESSAGE_BYTES: &str = "8388608";

/// The longest message that is copied to the topic of rejections, uncompressed: key, payload and
/// headers. The topic must take it even where it does not compress.
pub const REJECTED_MESSAGE_BYTES: usize = 16 << 20;

/// After so long the coordinator aborts a transaction whose owner went away; it looks every ten
/// seconds by default.
///
/// Until then, readers of `deltas` stop before it, and who takes its partitions over waits for
/// their offsets. So it is no longer than it takes the group to miss a member, ten seconds by
/// default: neither wait is much longer than the other. And it is a hundred times what a flush
/// takes, so that a slow broker does not run into it.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that is half open is given up after so long, while there is time to end the
/// transaction over another.
const TRANSACTION_SOCKET_TIMEOUT: Duration = Duration::from_secs(4);

/// A partition that was added is noticed by the group after so long.
const METADATA_REFRESH: Duration = Duration::from_secs(10);

/// What every client has: the brokers, and the user's own properties.
pub fn client(cluster: &Cluster, client_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", client_id);
    for (name, value) in &cluster.properties {
        config.set(name, value);
    }
    config.set("bootstrap.servers", &cluster.bootstrap);
    config
}

/// A consumer that reads only what was committed, and starts only where it is told to: an offset
/// that is not there is an error, never a reason to jump.
pub fn consumer(cluster: &Cluster, client_id: &str, group: &str) -> ClientConfig {
    let mut config = client(cluster, client_id);
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // A member learns from its next heartbeat that partitions move, and those stand still until
        // it does.
        .set("heartbeat.interval.ms", "500")
        .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH.as_millis().to_string())
        .set("fetch.wait.max.ms", "50")
        .set("fetch.queue.backoff.ms", "10")
        // What is fetched ahead bounds the consumer's memory: a small message takes ten times its
        // size there.
        .set("fetch.message.max.bytes", "1048576")
        .set("fetch.max.bytes", "16777216")
        .set("receive.message.max.bytes", "67108864")
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", "32768");
    config
}

/// A producer whose acknowledgements mean that every in-sync replica has the message, once.
pub fn producer(cluster: &Cluster, client_id: &str) -> ClientConfig {
    let mut config = client(cluster, client_id);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("message.max.bytes", MAX_MESSAGE_BYTES);
    config
}

/// A producer of transactions. Its id is the same after a restart, so that the broker ends what was
/// left open.
pub fn transactional_producer(
    cluster: &Cluster,
    client_id: &str,
    transactional_id: &str,
) -> ClientConfig {
    let mut config = producer(cluster, client_id);
    let timeout_ms = TRANSACTION_TIMEOUT.as_millis().to_string();
    config
        .set("transactional.id", transactional_id)
        .set("transaction.timeout.ms", &timeout_ms)
        .set("message.timeout.ms", &timeout_ms)
        .set("message.max.bytes", REJECTED_MESSAGE_BYTES.to_string())
        .set("socket.timeout.ms", TRANSACTION_SOCKET_TIMEOUT.as_millis().to_string())
        .set("linger.ms", "0");
    config
}
