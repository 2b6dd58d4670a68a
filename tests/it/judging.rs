//! Rejections are judged again: what is on the topic of rejected messages is not believed.

use tally_counts::Reject;
use tally_schemas::{Delta, DeltaBatchHeader};

use crate::forger::{Forger, header};
use crate::installation::Installation;
use crate::model::Event;
use crate::service::Service;

const AT_MS: i64 = 1_780_000_000_000;

/// What a build would write that rejects every tenth good message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_message_that_was_rejected_is_found_whatever_reason_was_given() {
    let tally = Installation::new("judged").await;
    let source = tally.source().await;
    for _ in 0..10 {
        source.single(0, &Event::new("judged", "k", 1, AT_MS)).await;
    }
    let forger = Forger::new(&tally.config).await;
    let bucket_s = u32::try_from(AT_MS / 1000 / 60 * 60).expect("before 2106");
    let nine = Delta { namespace: "judged", key: "k", bucket_s, sum: 9, events: 9 };
    let ten = DeltaBatchHeader { counted: 9, rejected: 1, ..header(0, 0, 10) };
    forger.batch(ten, &[nine]).await;
    let mut sink = tally.start(Service::Sink, "a");
    tally.caught_up().await;
    for reason in Reject::ALL.iter().filter(|reason| !reason.is_of_schema()) {
        // The last reason that is given is the one that counts.
        forger.rejection(0, 7, *reason).await;
        let ended = tally.verify().await.expect_code(1);
        let said = format!("partition 0: offset 7 was rejected as {reason}, but it counts");
        assert!(ended.stdout.contains(&said), "{said:?} is not in {}", ended.stdout);
        assert!(ended.stdout.contains("messages counted: 9 in ClickHouse, 10 in Kafka"));
    }
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_among_the_rejected_that_no_aggregator_wrote_are_passed_over() {
    let tally = Installation::new("strange").await;
    tally.source().await.single(1, &Event::new("strange", "k", 1, AT_MS)).await;
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.caught_up().await;
    let forger = Forger::new(&tally.config).await;
    forger.rejected(2, &[]).await;
    forger.rejected(0, &[("tally.partition", "0"), ("tally.offset", "x")]).await;
    let ended = tally.verify().await.expect_code(0);
    assert!(ended.stdout.contains("note: 2 messages among the rejected are none"), "{ended:?}");
    assert!(ended.stdout.contains("all 3 partitions agree: 1 messages"), "{ended:?}");
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejections_are_listed_by_reason_and_more_than_allowed_fail_the_check() {
    let tally = Installation::new("listed").await;
    let source = tally.source().await;
    for payload in [&b"{}"[..], b"not framed either"] {
        source.send(0, Some(payload)).await;
    }
    source.single(0, &Event::new("", "no namespace", 1, AT_MS)).await;
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.caught_up().await;
    let verify = async |allowed: &str| {
        tally.tally(&["reconciler", "verify", "--max-rejected", allowed]).await
    };
    let said = verify("3").await.expect_code(0).stdout;
    assert!(said.contains("rejected: 1 name_out_of_range, 2 not_framed"), "{said}");
    let said = verify("2").await.expect_code(1).stdout;
    assert!(said.contains("3 messages were rejected for what the gateway refuses, 2 are allowed"));

    let json = tally.tally(&["reconciler", "verify", "--json"]).await.expect_code(0).stdout;
    let report: serde_json::Value = serde_json::from_str(&json).expect("one JSON document");
    assert_eq!(report["verdict"], "agrees");
    assert_eq!(report["partitions"][0]["rejected_by_reason"]["not_framed"], 2);
    assert_eq!(report["partitions"][0]["position"], 3);
    for service in &mut services {
        service.terminate().await;
    }
}
