//! What the brokers say about themselves: who leads what, who coordinates whom, which replicas lag.

use std::time::Duration;

use anyhow::{Context, ensure};
use rdkafka::consumer::Consumer;
use rdkafka::metadata::Metadata;
use tally_stack::broker;
use tokio::task::spawn_blocking;

use super::properties::INTERNAL_PARTITIONS;

pub(super) const GROUP_OFFSETS: &str = "__consumer_offsets";
pub(super) const TRANSACTION_STATE: &str = "__transaction_state";
const PATIENCE: Duration = Duration::from_secs(3);

/// The partition of an internal topic that a name belongs to, whose leader coordinates it.
pub(super) fn internal_partition(name: &str) -> i32 {
    let hash = java_hash(name);
    // Kafka's own `Utils.abs`.
    (if hash == i32::MIN { 0 } else { hash.abs() }) % INTERNAL_PARTITIONS
}

/// Java's `String.hashCode`.
fn java_hash(text: &str) -> i32 {
    text.encode_utf16()
        .fold(0, |hash: i32, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

/// The node that leads a partition, as the first broker that answers sees it.
pub(super) async fn leader(bootstrap: String, topic: &str, partition: i32) -> anyhow::Result<i32> {
    let topic = topic.to_owned();
    ask(bootstrap, Some(topic.clone()), move |metadata| {
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let found = found.and_then(|topic| topic.partitions().iter().find(|p| p.id() == partition));
        let leader = found.with_context(|| format!("topic {topic} is not there"))?.leader();
        ensure!(leader >= 0, "partition {partition} of {topic} has no leader");
        Ok(leader)
    })
    .await
}

/// How many partitions a topic has, as the first broker that answers sees it.
pub(super) async fn partitions(bootstrap: String, topic: &str) -> anyhow::Result<i32> {
    let topic = topic.to_owned();
    ask(bootstrap, Some(topic.clone()), move |metadata| {
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let count = found.map_or(0, |topic| topic.partitions().len());
        ensure!(count > 0, "topic {topic} is not there");
        Ok(i32::try_from(count)?)
    })
    .await
}

/// What one broker knows of the cluster.
#[derive(Debug)]
pub(super) struct View {
    pub(super) nodes: Vec<i32>,
    /// Partitions of any topic with fewer replicas in sync than it has, or without a leader.
    pub(super) under_replicated: usize,
}

pub(super) async fn view(broker: String) -> anyhow::Result<View> {
    ask(broker, None, |metadata| {
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let lacks = partitions
            .filter(|found| found.leader() < 0 || found.isr().len() < found.replicas().len());
        Ok(View {
            nodes: metadata.brokers().iter().map(|broker| broker.id()).collect(),
            under_replicated: lacks.count(),
        })
    })
    .await
}

async fn ask<T: Send + 'static>(
    bootstrap: String,
    topic: Option<String>,
    read: impl FnOnce(&Metadata) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let asked = spawn_blocking(move || {
        let metadata = broker::quiet_client(&bootstrap)
            .and_then(|client| client.fetch_metadata(topic.as_deref(), PATIENCE));
        let what = topic.as_deref().unwrap_or("all topics");
        read(&metadata.with_context(|| format!("ask the brokers for {what}"))?)
    });
    asked.await.expect("reading metadata does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hash_as_in_java() {
        assert_eq!(java_hash(""), 0);
        assert_eq!(java_hash("hello"), 99_162_322);
        assert_eq!(java_hash("tally-aggregator"), {
            let bytes = "tally-aggregator".bytes().rev().enumerate();
            bytes.fold(0i32, |sum, (power, byte)| {
                sum.wrapping_add(i32::from(byte).wrapping_mul(31i32.wrapping_pow(power as u32)))
            })
        });
        // The one hash that has no absolute value.
        assert_eq!(java_hash("polygenelubricants"), i32::MIN);
        assert_eq!(internal_partition("polygenelubricants"), 0);
        assert_eq!(internal_partition("hello"), 99_162_322 % 8);
    }
}
