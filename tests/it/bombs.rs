//! Messages of some kilobytes that are hundreds of megabytes once they are decompressed: none ends
//! a service or takes its memory, each is rejected with its reason, and those around it count.

use std::collections::BTreeMap;

use rdkafka::Message;
use tally_kafka::Fetch;
use tally_schemas::wire;

use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::service::Service;
use crate::source::Source;
use crate::topics;

const AT_MS: i64 = 1_780_000_000_000;
const MIB: usize = 1 << 20;
/// What docs/durability.md states: a batch, what is decompressed ahead and kept, and the rest.
const MOST_BYTES: u64 = 600 << 20;

/// An increment batch of so many increments of seven bytes each.
fn many_tiny(schema: u32, increments: i64) -> Vec<u8> {
    let mut message = wire::prefix(schema).to_vec();
    // No id; then one block of so many items.
    message.push(0);
    let mut number = increments.cast_unsigned() << 1;
    while number >= 0x80 {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
    for _ in 0..increments {
        // Namespace and key of one letter, delta 1, at 0, no id.
        message.extend_from_slice(b"\x02b\x02k\x02\x00\x00");
    }
    message.push(0);
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_once_it_is_decompressed_is_rejected_and_takes_bounded_memory() {
    let tally = Installation::new("bombs").await;
    let properties = [
        ("compression.type", "zstd"),
        ("linger.ms", "0"),
        ("message.max.bytes", "400000000"),
        ("queue.buffering.max.kbytes", "2000000"),
    ];
    let source = Source::with(&tally.config, &properties).await;
    let (mut model, mut expected) = (Model::default(), BTreeMap::new());
    let mut good = async |partition: i32| {
        let event = Event::new("good", &format!("{partition}"), 1, AT_MS);
        source.single(partition, &event).await;
        model.add(&event);
    };
    let zeros = |bytes: usize| {
        let mut message = wire::prefix(source.batch_schema).to_vec();
        message.resize(bytes, 0);
        message
    };
    for partition in 0..3 {
        good(partition).await;
    }
    let mut send = async |message: Vec<u8>, reason: &'static str, times: usize| {
        for _ in 0..times {
            expected.insert(source.send(1, Some(&message)).await, reason);
        }
    };
    send(zeros(300 * MIB), "too_large", 1).await;
    send(many_tiny(source.batch_schema, 12_000_000), "too_large", 1).await;
    // An empty batch, and bytes behind it.
    send(zeros(60 * MIB), "undecodable", 8).await;
    for partition in 0..3 {
        good(partition).await;
    }

    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.prove(&model).await;
    let bytes = services[0].peak_memory_bytes();
    assert!(bytes < MOST_BYTES, "the aggregator took {bytes} bytes");
    let rejected = topics::messages(&tally.config.kafka, &tally.config.kafka.rejected).await;
    let mut found = BTreeMap::new();
    for message in &rejected {
        let header = |name| topics::header(message, name).expect("a header");
        found.insert(header("tally.offset").parse().expect("an offset"), header("tally.reason"));
        assert_eq!(message.payload(), None);
        let is_batch = header("tally.truncated") == "batch";
        assert_eq!(is_batch, header("tally.detail").contains("decompressed"));
    }
    assert_eq!(found, expected);
    for service in &mut services {
        service.terminate().await;
    }
}

/// librdkafka does not decompress it, and cannot pass over it either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_librdkafka_does_not_decompress_stops_its_partition_alone() {
    let mut tally = Installation::new("bombs_there").await;
    tally.allow("the partition stops; the others go on");
    tally.configure(|config| config.aggregator.fetch = Fetch::Librdkafka);
    let properties = [("compression.type", "zstd"), ("message.max.bytes", "400000000")];
    let source = Source::with(&tally.config, &properties).await;
    let event = |partition: i32| Event::new("good", &format!("{partition}"), 1, AT_MS);
    source.send(1, Some(&vec![0; 300 * MIB])).await;
    for partition in [0, 2] {
        source.single(partition, &event(partition)).await;
    }
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    services[0].logs("the partition stops; the others go on").await;
    let reasons = services[0].readiness().await.expect_err("not ready with a stopped partition");
    assert!(reasons.contains("partition 1: "), "{reasons}");
    services[1].counts_beyond(1.0, "tally_sink_batches_total", "").await;
    for service in &mut services {
        service.terminate().await;
    }
}
