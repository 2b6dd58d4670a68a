use futures_util::future::join_all;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use tally_counts::BucketWidth;

use crate::installation::Installation;
use crate::service::Service;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_may_be_repeated_and_changes_nothing() {
    let tally = Installation::bare("init");
    let first = tally.tally(&["init"]).await.expect_code(0).stdout;
    assert!(first.contains(&format!("topic {}: made", tally.config.kafka.increments)), "{first}");
    let second = tally.tally(&["init"]).await.expect_code(0).stdout;
    assert!(
        second.contains(&format!("topic {}: there", tally.config.kafka.increments)),
        "{second}"
    );
    let schemas = |report: &str| -> Vec<String> {
        report.lines().filter(|line| line.starts_with("subject ")).map(str::to_owned).collect()
    };
    assert_eq!(schemas(&first).len(), 3, "{first}");
    assert_eq!(schemas(&first), schemas(&second), "the same schemas under the same ids");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn installations_that_share_a_registry_can_be_made_at_once() {
    let installations = ["at_once"; 4].map(Installation::bare);
    for ended in join_all(installations.iter().map(|tally| tally.tally(&["init"]))).await {
        ended.expect_code(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_refuses_what_contradicts_what_is_there_and_names_the_difference() {
    let mut tally = Installation::new("contradicts").await;
    tally.configure(|config| config.kafka.partitions = 5);
    let refused = tally.tally(&["init"]).await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
    let said = &refused.stderr;
    assert!(said.contains(&tally.config.kafka.increments), "{said}");
    assert!(said.contains("has 3 partitions, but kafka.partitions is 5"), "{said}");

    tally.configure(|config| {
        config.kafka.partitions = 3;
        config.counts.bucket_seconds =
            BucketWidth::from_secs(3_600).expect("an hour divides a day");
    });
    let refused = tally.tally(&["init"]).await;
    assert_ne!(refused.code, Some(0), "{refused:?}");
    let said = &refused.stderr;
    assert!(said.contains("bucket_seconds=60 ") && said.contains("bucket_seconds=3600 "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_refuses_a_topic_of_rejections_that_takes_less_than_increments() {
    const LIMIT: &str = "max.message.bytes";
    let tally = Installation::new("limits").await;
    let kafka = &tally.config.kafka;
    let admin: AdminClient<DefaultClientContext> =
        tally_kafka::client(&kafka.cluster(), "tally-it").create().expect("a client is made");
    let set = async |topic: &str, bytes: u64| {
        let bytes = bytes.to_string();
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(LIMIT, &bytes);
        let altered =
            admin.alter_configs([&change], &AdminOptions::new()).await.expect("the broker answers");
        altered.into_iter().for_each(|outcome| drop(outcome.expect("the topic is altered")));
    };
    // What a broker allows by itself.
    set(&kafka.rejected, 1_048_588).await;
    let said = tally.tally(&["init"]).await.expect_code(69).stderr;
    assert!(
        said.contains(&format!("topic {}: its {LIMIT} is 1048588, but", kafka.rejected)),
        "{said}"
    );
    assert!(said.contains(&format!("the {LIMIT} of {} is 1048588", kafka.increments)), "{said}");
    assert!(said.contains(&format!("{LIMIT}={}", (16 << 20) + (64 << 10))), "{said}");

    set(&kafka.rejected, 32 << 20).await;
    tally.tally(&["init"]).await.expect_code(0);
    set(&kafka.increments, 32 << 20).await;
    let said = tally.tally(&["init"]).await.expect_code(69).stderr;
    assert!(said.contains(&format!("{LIMIT}={}", (32 << 20) + (64 << 10))), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_init_a_service_says_what_to_run() {
    let mut tally = Installation::bare("no_init");
    tally.allow("run `tally init`");
    for kind in [Service::Aggregator, Service::Sink] {
        let mut service = tally.start(kind, "a");
        assert_ne!(service.ended().await.code(), Some(0));
        service.logs("run `tally init`").await;
    }
}
