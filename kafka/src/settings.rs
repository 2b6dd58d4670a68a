use std::time::Duration;

use rdkafka::ClientConfig;

use crate::{Cluster, FetchedMessage, canonical_property};

/// The longest message that a producer without transactions appends; a topic may allow less.
const MAX_MESSAGE_BYTES: &str = "8388608";

/// The longest message of a transactional producer, uncompressed: key, payload and headers. Its
/// topic must take it even where it does not compress.
pub const MAX_TRANSACTION_MESSAGE_BYTES: usize = 16 << 20;

/// How old a transaction may get before the coordinator aborts it, because its producer may have
/// gone away; the coordinator looks every ten seconds by default.
///
/// Until then, readers of committed messages stop before the transaction, and the group's member
/// that takes the partitions over waits for their committed offsets. So the timeout is no longer
/// than it takes the group to miss a member, ten seconds by default: neither wait is much longer
/// than the other. And it is a hundred times what a transaction of ours takes, so that a slow
/// broker does not run into it.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a transactional producer waits on a connection that may be half open: after that there
/// is still time to end the transaction over another connection.
const TRANSACTION_SOCKET_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a partition that was added to a topic may go unnoticed by the group.
const METADATA_REFRESH: Duration = Duration::from_secs(10);

/// The settings of every client: the brokers, and the user's own properties.
pub fn client(cluster: &Cluster, client_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", client_id);
    // Topics are made by `tally init`, as counting needs them. A producer's metadata calls would
    // have a broker that may make topics make them of its defaults.
    config.set("allow.auto.create.topics", "false");
    for (name, value) in &cluster.properties {
        config.set(canonical_property(name), value);
    }
    config.set("bootstrap.servers", &cluster.bootstrap);
    config
}

/// The settings of a consumer that reads only committed messages, and starts only where it is told
/// to: an offset that the partition does not have is an error, never a reason to jump.
pub fn consumer(cluster: &Cluster, client_id: &str, group: &str) -> ClientConfig {
    let mut config = client(cluster, client_id);
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("check.crcs", "true")
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // A member learns from the answer to its next heartbeat that partitions move, and nobody
        // reads those until it has.
        .set("heartbeat.interval.ms", "500")
        .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH.as_millis().to_string())
        .set("fetch.wait.max.ms", "50")
        .set("fetch.queue.backoff.ms", "10")
        // The limits on what is fetched ahead bound the consumer's memory, where a small message
        // takes ten times its size.
        .set("fetch.message.max.bytes", "1048576")
        .set("fetch.max.bytes", "16777216")
        // It bounds what a batch decompresses to as well.
        .set("receive.message.max.bytes", FetchedMessage::MAX_BATCH_BYTES.to_string())
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", "32768");
    config
}

/// The settings of a producer whose acknowledgement means that every in-sync replica has the
/// message, once.
pub fn producer(cluster: &Cluster, client_id: &str) -> ClientConfig {
    let mut config = client(cluster, client_id);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("message.max.bytes", MAX_MESSAGE_BYTES);
    config
}

/// The settings of a transactional producer. Its transactional id must be the same after a restart,
/// so that the coordinator aborts the transaction that was left open.
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
        .set("message.max.bytes", MAX_TRANSACTION_MESSAGE_BYTES.to_string())
        .set("socket.timeout.ms", TRANSACTION_SOCKET_TIMEOUT.as_millis().to_string())
        .set("linger.ms", "0");
    config
}
