use std::collections::BTreeSet;

use futures_util::future::join_all;
use tally_counts::BucketWidth;
use tally_platform::registry::Registry;

use crate::installation::Installation;
use crate::own_broker::OwnBroker;
use crate::service::Service;
use crate::topics;
use crate::wait::until;

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
async fn init_keeps_a_compatibility_level_that_is_stricter_and_mends_one_that_is_not() {
    let tally = Installation::new("levels").await;
    let registry = Registry::new(&tally.config.registry).expect("a client is made");
    let subject = format!("{}-value", tally.config.kafka.deltas);
    for (set, then) in [("FULL_TRANSITIVE", "FULL_TRANSITIVE"), ("NONE", "BACKWARD")] {
        registry.set_compatibility(&subject, set).await.expect("the registry answers");
        tally.tally(&["init"]).await.expect_code(0);
        let level = registry.compatibility(&subject).await.expect("the registry answers");
        assert_eq!(level.as_deref(), Some(then), "{set} was set");
    }
}

/// The proxy is where nobody listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_not_asked_for_what_is_on_this_machine() {
    let mut tally = Installation::bare("proxied");
    let proxies = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"]
        .map(|name| (name, "http://127.0.0.1:9"));
    tally.tally_in(&proxies, &["init"]).await.expect_code(0);
    let others = [&proxies[..], &[("no_proxy", "example.org")]].concat();
    tally.tally_in(&others, &["init"]).await.expect_code(0);

    let by_name = |url: &str| url.replacen("127.0.0.1", "localhost", 1);
    tally.configure(|config| {
        config.registry.url = by_name(&config.registry.url);
        config.store.url = by_name(&config.store.url);
    });
    tally.tally_in(&others, &["init"]).await.expect_code(0);
    let kinds = [Service::Producer, Service::Aggregator, Service::Sink, Service::Reader];
    let mut services = kinds.map(|kind| tally.start_with(kind, "a", &others));
    for service in &mut services {
        service.ready().await;
    }
    for service in &mut services {
        service.terminate().await;
    }
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
    let set = async |topic: &str, bytes: u64| {
        topics::set(kafka, topic, &[(LIMIT, &bytes.to_string())]).await;
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
async fn init_makes_topics_that_keep_the_log() {
    let tally = Installation::new("keeps").await;
    let kafka = &tally.config.kafka;
    let settings = async |topic: &str| {
        let mut settings = topics::settings(kafka, topic).await;
        settings.remove("max.message.bytes");
        settings.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    let kept = [
        "cleanup.policy=delete",
        "message.timestamp.type=LogAppendTime",
        "min.insync.replicas=1",
        "retention.bytes=-1",
    ];
    let of_log = [&kept[..], &["retention.ms=-1"]].concat();
    for topic in [&kafka.increments, &kafka.rejected] {
        assert_eq!(settings(topic).await, of_log);
    }
    let of_deltas = [&kept[..], &["retention.ms=2592000000"]].concat();
    assert_eq!(settings(&kafka.deltas).await, of_deltas);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_refuses_a_log_that_forgets_unless_it_is_meant_to() {
    let mut tally = Installation::new("forgets").await;
    let kafka = tally.config.kafka.clone();
    let week = [("retention.ms", "604800000"), ("retention.bytes", "1073741824")];
    for topic in [&kafka.increments, &kafka.rejected] {
        topics::set(&kafka, topic, &week).await;
        let said = tally.tally(&["init"]).await.expect_code(69).stderr;
        assert!(
            said.contains(&format!("topic {topic}: its retention.ms is 604800000, but")),
            "{said}"
        );
        assert!(said.contains("its retention.bytes is 1073741824, but"), "{said}");
        let command = format!(
            "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics \
             --entity-name {topic} --add-config retention.ms=-1)",
            kafka.bootstrap
        );
        assert!(said.contains(&command), "{said}");
        assert!(said.contains("kafka.keep_log = false"), "{said}");

        tally.configure(|config| config.kafka.keep_log = false);
        let said = tally.tally(&["init"]).await.expect_code(0).stdout;
        let warning = format!("topic {topic}: warning: its retention.ms is 604800000, but");
        assert!(said.contains(&warning) && said.contains(&command), "{said}");
        assert_eq!(topics::settings(&kafka, topic).await["retention.ms"], "604800000");

        tally.configure(|config| config.kafka.keep_log = true);
        topics::set(&kafka, topic, &[("retention.ms", "-1"), ("retention.bytes", "-1")]).await;
        let said = tally.tally(&["init"]).await.expect_code(0).stdout;
        assert!(!said.contains("warning"), "{said}");
    }
    topics::set(&kafka, &kafka.increments, &[("cleanup.policy", "compact")]).await;
    tally.configure(|config| config.kafka.keep_log = false);
    let said = tally.tally(&["init"]).await.expect_code(69).stderr;
    assert!(
        said.contains("its cleanup.policy is compact, but counts need every message"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_tells_of_settings_that_weaken_the_promise_and_goes_on() {
    let tally = Installation::new("weakens").await;
    let kafka = &tally.config.kafka;
    let create_time = ("message.timestamp.type", "CreateTime");
    topics::set(kafka, &kafka.increments, &[create_time]).await;
    topics::set(kafka, &kafka.deltas, &[("retention.ms", "604800000")]).await;
    let said = tally.tally(&["init"]).await.expect_code(0).stdout;
    for (topic, setting, have, want) in [
        (&kafka.increments, create_time.0, create_time.1, "LogAppendTime"),
        (&kafka.deltas, "retention.ms", "604800000", "2592000000"),
    ] {
        let warning = format!("topic {topic}: warning: its {setting} is {have}, but");
        assert!(said.contains(&warning), "{said}");
        let change = format!("--entity-name {topic} --add-config {setting}={want})");
        assert!(said.contains(&change), "{said}");
    }
    assert_eq!(said.matches("warning").count(), 2, "{said}");
    let settings = topics::settings(kafka, &kafka.increments).await;
    assert_eq!(settings[create_time.0], create_time.1, "what is there is never changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_init_a_service_says_what_to_run() {
    let mut tally = Installation::bare("no_init");
    tally.allow("run `tally init`");
    // A registry that has lost its data would say the same, and get it back.
    let mut aggregator = tally.start(Service::Aggregator, "a");
    aggregator.logs("run `tally init`").await;
    let why = aggregator.readiness().await.expect_err("there is no subject");
    assert!(why.contains("run `tally init`"), "{why}");
    let mut sink = tally.start(Service::Sink, "a");
    assert_ne!(sink.ended().await.code(), Some(0));
    sink.logs("run `tally init`").await;

    tally.tally(&["init"]).await.expect_code(0);
    aggregator.ready().await;
    aggregator.terminate().await;
}

/// Kafka makes a topic of its defaults for whoever asks for one that is not there, if it may: one
/// partition, whose messages are deleted after a week.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_init_no_service_makes_a_topic_and_none_is_ready() {
    let broker = OwnBroker::start("auto_create", &[("auto.create.topics.enable", "true")]).await;
    let mut tally = Installation::bare("no_topics");
    tally.allow("run `tally init`");
    // The registry and the store are the shared ones, and know this installation.
    tally.tally(&["init"]).await.expect_code(0);
    tally.configure(|config| config.kafka.bootstrap = broker.address.to_string());

    let gateway = tally.start(Service::Producer, "a");
    gateway.logs("run `tally init`").await;
    let why = gateway.readiness().await.expect_err("the topic is not there");
    assert!(why.contains("run `tally init`"), "{why}");
    for kind in [Service::Aggregator, Service::Sink] {
        let mut service = tally.start(kind, "a");
        assert_ne!(service.ended().await.code(), Some(0));
        service.logs("run `tally init`").await;
    }
    for kind in [Service::Reader, Service::Watch] {
        let service = tally.start(kind, "a");
        service.logs("run `tally init`").await;
        service.readiness().await.expect_err("the topics are not there");
    }
    assert_eq!(topics::names(&tally.config.kafka).await, BTreeSet::new());

    tally.tally(&["init"]).await.expect_code(0);
    let is_ready = async || gateway.readiness().await;
    until("the gateway to be ready", is_ready).await;
}
