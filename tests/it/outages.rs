//! Parts of the stack that are away for a while.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};
use tally_platform::registry::Registry;
use tally_schemas::wire;

use crate::dice::Dice;
use crate::feeder::{Feeder, random_events};
use crate::installation::Installation;
use crate::intercept::{Call, Interceptor, ProxyAction};
use crate::model::{Event, Model};
use crate::odd_registry::{Odd, OddRegistry};
use crate::ports::free_port;
use crate::proxy::{Mode, Proxy};
use crate::service::{Service, ServiceProcess};

const BATCHES: &str = "tally_sink_batches_total";
const INSERTS: &str = "tally_sink_inserts_total";
const REWINDS: &str = "tally_sink_rewinds_total";
const REGISTRY_PATH: &str = "/apis/ccompat/v7";

pub(crate) fn address(url: &str) -> SocketAddr {
    let authority = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split('/').next())
        .expect("a URL with a host");
    authority.parse().expect("the stack is at an address")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_down_at_the_start_is_waited_for() {
    let mut tally = Installation::new("no_registry").await;
    tally.allow("wait for the schema registry");
    tally.allow("waiting for the schemas");
    let source = tally.source().await;
    let events = random_events(&mut Dice(8), 300);
    source.spread(&events, 10).await;

    let port = free_port();
    let url = format!("http://127.0.0.1:{port}{REGISTRY_PATH}");
    let mut services = [Service::Producer, Service::Aggregator, Service::Sink]
        .map(|kind| tally.start_with(kind, "a", &[("TALLY_REGISTRY__URL", &url)]));
    services[0].logs("waiting for the schemas").await;
    services[1].logs("wait for the schema registry").await;
    for (service, reason) in services.iter().zip(["schemas: ", "partitions assigned"]) {
        let reasons = service.readiness().await.expect_err("not ready without a registry");
        assert!(reasons.contains(reason), "{reasons}");
    }
    let increment =
        json!({ "namespace": "late", "key": "k", "delta": 5, "at": 1_780_000_000_000_i64 });
    let post = || {
        let url = format!("{}/v1/increments", services[0].url());
        services[0].http().post(url).json(&increment)
    };
    let (status, problem) = services[0].call(post()).await;
    assert_eq!((status, problem["outcome"].as_str()), (503, Some("not_applied")), "{problem}");

    let _registry = Proxy::start(port, address(&tally.config.registry.url)).await;
    for service in &mut services {
        service.ready().await;
    }
    let post =
        services[0].http().post(format!("{}/v1/increments", services[0].url())).json(&increment);
    let (status, answer) = services[0].call(post).await;
    assert_eq!((status, answer["accepted"].as_u64()), (200, Some(1)), "{answer}");
    let mut model = Model::default();
    model.add_all(&events);
    model.add(&Event::new("late", "k", 5, 1_780_000_000_000));
    tally.prove(&model).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_the_registry_cannot_tell_of_yet_is_waited_for_and_not_rejected() {
    let mut tally = Installation::new("registry_gone").await;
    tally.allow("the partition waits for the schema registry");
    let registry = Proxy::start(free_port(), address(&tally.config.registry.url)).await;
    let url = registry.url(REGISTRY_PATH);
    let mut aggregator =
        tally.start_with(Service::Aggregator, "a", &[("TALLY_REGISTRY__URL", &url)]);
    let mut sink = tally.start(Service::Sink, "a");
    aggregator.ready().await;
    sink.ready().await;

    registry.set(Mode::Refusing);
    let events = random_events(&mut Dice(80), 300);
    tally.source().await.spread(&events, 10).await;
    aggregator.logs("the partition waits for the schema registry").await;
    registry.set(Mode::Open);
    let mut model = Model::default();
    model.add_all(&events);
    tally.prove(&model).await;
    aggregator.terminate().await;
}

/// A registry that hangs at one schema: the partition that needs it waits, and says so; one that
/// needs another new schema, and one that needs none, go on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_partition_waits_whose_schema_the_registry_does_not_tell() {
    let mut tally = Installation::new("one_waits").await;
    tally.allow("the partition waits for the schema registry");
    let source = tally.source().await;
    let registry = OddRegistry::start(&tally.config.registry.url).await;
    let url = registry.url.clone();
    let mut aggregator =
        tally.start_with(Service::Aggregator, "a", &[("TALLY_REGISTRY__URL", &url)]);
    let mut sink = tally.start(Service::Sink, "a");
    let event = |key: &str| Event::new("waits", key, 1, 1_780_000_000_000);
    let mut model = Model::default();
    source.single(0, &event("before")).await;
    model.add(&event("before"));
    tally.prove(&model).await;

    let [hangs, new] = [1, 2].map(|number| {
        let mut schema: Value =
            serde_json::from_str(tally_schemas::avsc::INCREMENT).expect("it is JSON");
        schema["fields"][0]["doc"] = json!(format!("{} {number}", tally.config.kafka.increments));
        schema.to_string()
    });
    let real = Registry::new(&tally.config.registry).expect("a client is made");
    let mut ids = Vec::new();
    for schema in [hangs, new] {
        let subject = format!("{}-waits", tally.config.kafka.increments);
        ids.push(real.register(&subject, &schema).await.expect("the registry takes it"));
    }
    registry.answer(ids[0], Odd::Nothing);
    let by = |schema: u32, event: &Event| {
        let single = source.encode_single(event);
        [wire::prefix(schema).as_slice(), &single[wire::PREFIX_BYTES..]].concat()
    };
    source.send(0, Some(&by(ids[0], &event("hangs")))).await;
    aggregator.logs("the partition waits for the schema registry").await;
    let increments = "tally_aggregator_increments_total";
    source.send(1, Some(&by(ids[1], &event("new")))).await;
    source.single(2, &event("known")).await;
    aggregator.counts_beyond(2.0, increments, "").await;
    let reasons = aggregator.readiness().await.expect_err("not ready while a partition waits");
    assert!(reasons.contains("partition 0: "), "{reasons}");
    assert!(reasons.contains("(since 20"), "{reasons}");
    assert_eq!(aggregator.metric(increments, "").await, Ok(3.0));

    registry.answer_all();
    ["hangs", "new", "known"].iter().for_each(|key| model.add(&event(key)));
    tally.prove(&model).await;
    aggregator.ready().await;
    aggregator.terminate().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_wait_for_the_registry_can_move_to_another_member() {
    let mut tally = Installation::new("waiting_moves").await;
    tally.allow("the partition waits for the schema registry");
    let registry = Proxy::start(free_port(), address(&tally.config.registry.url)).await;
    let url = registry.url(REGISTRY_PATH);
    let mut first =
        tally.start_with(Service::Aggregator, "first", &[("TALLY_REGISTRY__URL", &url)]);
    let mut sink = tally.start(Service::Sink, "a");
    first.ready().await;
    registry.set(Mode::Refusing);
    let events = random_events(&mut Dice(81), 300);
    tally.source().await.spread(&events, 10).await;
    first.logs("the partition waits for the schema registry").await;

    let mut second = tally.start(Service::Aggregator, "second");
    second.counts_beyond(0.0, "tally_aggregator_increments_total", "").await;
    first.terminate().await;
    let mut model = Model::default();
    model.add_all(&events);
    tally.prove(&model).await;
    second.terminate().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_goes_away_for_a_while_loses_and_repeats_nothing() {
    let mut tally = Installation::new("store_gone").await;
    tally.allow("ClickHouse may have stored the block or not; sending it again");
    tally.allow("ClickHouse cannot be asked for its promises");
    tally.allow("the ledger in ClickHouse cannot be read");
    tally.allow("the ledger in ClickHouse cannot be checked");
    let store = Proxy::start(free_port(), address(&tally.config.store.url)).await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start_with(Service::Sink, "a", &[("TALLY_STORE__URL", &store.url(""))]);
    let load = Feeder::start(&tally.source().await, 9);
    sink.counts_beyond(1.0, BATCHES, "").await;

    for mode in [Mode::Refusing, Mode::Deaf] {
        let before = sink.metric(INSERTS, "uncertain").await.expect("a metric");
        store.set(mode);
        sink.counts_beyond(before + 2.0, INSERTS, "uncertain").await;
        load.goes_on().await;
        store.set(Mode::Open);
        let stored = sink.metric(BATCHES, "").await.expect("a metric");
        sink.counts_beyond(stored + 3.0, BATCHES, "").await;
    }
    // The blocks whose answers were lost were in already, and the store refused them when they came
    // again.
    sink.counts_beyond(0.0, INSERTS, "refused").await;
    tally.prove(&load.stop().await).await;
    aggregator.terminate().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verify_that_cannot_reach_the_store_says_so_and_not_that_counts_differ() {
    let mut tally = Installation::new("cannot_check").await;
    let port = free_port();
    tally.configure(|config| config.store.url = format!("http://127.0.0.1:{port}"));
    let ended = tally.verify().await.expect_code(69);
    assert!(ended.stderr.contains("tally: "), "{ended:?}");
}

/// An aggregator, and a sink that reaches the store by way of `store`, ready.
async fn services_before(
    tally: &Installation,
    store: &Interceptor,
) -> (ServiceProcess, ServiceProcess) {
    let aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start_with(Service::Sink, "a", &[("TALLY_STORE__URL", &store.url())]);
    sink.ready().await;
    (aggregator, sink)
}

/// A store that answers in its own way for as long as `is_on`.
async fn store_that(
    tally: &Installation,
    is_on: &Arc<AtomicBool>,
    answer: impl Fn(&Call) -> Option<ProxyAction> + Send + Sync + 'static,
) -> Interceptor {
    let is_on = Arc::clone(is_on);
    Interceptor::start(&tally.config.store.url, move |call| {
        if is_on.load(Ordering::Relaxed) {
            answer(call).unwrap_or(ProxyAction::Forward)
        } else {
            ProxyAction::Forward
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_too_many_parts_is_given_time_and_said_to_be_overloaded() {
    let mut tally = Installation::new("overloaded").await;
    tally.allow("ClickHouse is overloaded; the block waits");
    let is_on = Arc::new(AtomicBool::new(true));
    let store = store_that(&tally, &is_on, |call| {
        let body = "Code: 252. DB::Exception: Too many parts (3000). (TOO_MANY_PARTS) \
                    (version 26.7.2.1)\n";
        let exception_code = Some(252);
        call.is_block().then(|| ProxyAction::Answer {
            status: 500,
            exception_code,
            body: body.to_owned(),
        })
    })
    .await;
    let (mut aggregator, mut sink) = services_before(&tally, &store).await;
    let load = Feeder::start(&tally.source().await, 13);
    sink.counts_beyond(4.0, INSERTS, "overloaded").await;
    let reasons = sink.readiness().await.expect_err("not ready while the store is overloaded");
    assert!(
        reasons.contains("ClickHouse takes blocks: ")
            && reasons.contains("ClickHouse overloaded: "),
        "{reasons}"
    );
    assert_eq!(sink.metric(BATCHES, "").await, Ok(0.0));

    is_on.store(false, Ordering::Relaxed);
    sink.ready().await;
    tally.prove(&load.stop().await).await;
    aggregator.terminate().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exception_in_the_body_of_an_answer_of_200_does_not_pass_for_stored() {
    let mut tally = Installation::new("in_the_body").await;
    tally.allow("ClickHouse is overloaded; the block waits");
    tally.allow("ClickHouse may have stored the block or not; sending it again");
    let is_on = Arc::new(AtomicBool::new(true));
    let store = store_that(&tally, &is_on, |call| {
        let body = if call.is_block_of(0) {
            "Code: 241. DB::Exception: Memory limit (total) exceeded. (MEMORY_LIMIT_EXCEEDED) \
             (version 26.7.2.1)\n"
        } else {
            "\r\n__exception__\r\nrnywyenlaeqynhmu\r\nCode: 999. DB::Exception: Session expired. \
             (KEEPER_EXCEPTION) (version 26.7.2.1)\n96 rnywyenlaeqynhmu\r\n__exception__\r\n"
        };
        let (status, exception_code) = (200, None);
        call.is_block().then(|| ProxyAction::Answer {
            status,
            exception_code,
            body: body.to_owned(),
        })
    })
    .await;
    let (mut aggregator, mut sink) = services_before(&tally, &store).await;
    let load = Feeder::start(&tally.source().await, 14);
    sink.counts_beyond(1.0, INSERTS, "overloaded").await;
    sink.counts_beyond(1.0, INSERTS, "uncertain").await;
    assert_eq!(sink.metric(BATCHES, "").await, Ok(0.0));

    is_on.store(false, Ordering::Relaxed);
    tally.prove(&load.stop().await).await;
    // No batch was taken for stored, or the next one would have been refused.
    assert_eq!(sink.metric(REWINDS, "").await, Ok(0.0));
    assert_eq!(sink.metric(INSERTS, "refused").await, Ok(0.0));
    aggregator.terminate().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_the_store_takes_nothing_of_waits_for_mending_while_the_others_go_on() {
    let mut tally = Installation::new("unfit").await;
    tally.allow("ClickHouse takes no blocks until somebody mends it");
    let is_on = Arc::new(AtomicBool::new(true));
    let store = store_that(&tally, &is_on, |call| {
        let body = "Code: 497. DB::Exception: tally: Not enough privileges. (ACCESS_DENIED) \
                    (version 26.7.2.1)\n";
        let (status, exception_code) = (403, Some(497));
        call.is_block_of(1).then(|| ProxyAction::Answer {
            status,
            exception_code,
            body: body.to_owned(),
        })
    })
    .await;
    let (mut aggregator, mut sink) = services_before(&tally, &store).await;
    let load = Feeder::start(&tally.source().await, 15);
    sink.counts_beyond(0.0, INSERTS, "unfit").await;
    let reasons = sink.readiness().await.expect_err("not ready while the store needs mending");
    assert!(reasons.contains("partition 1: ClickHouse needs mending: Code: 497."), "{reasons}");
    assert!(!reasons.contains("partition 0") && !reasons.contains("partition 2"), "{reasons}");
    let stored = sink.metric(BATCHES, "").await.expect("a metric");
    sink.counts_beyond(stored + 6.0, BATCHES, "").await;

    is_on.store(false, Ordering::Relaxed);
    sink.ready().await;
    tally.prove(&load.stop().await).await;
    aggregator.terminate().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_down_at_the_start_is_waited_for() {
    let mut tally = Installation::new("no_broker").await;
    tally.allow("the Kafka brokers do not answer");
    tally.allow("librdkafka: ");
    tally.allow("connection to the Kafka broker lost; reconnecting");
    tally.allow("trouble with a Kafka broker; librdkafka reconnects");
    let broker = address(&format!("http://{}", tally.config.kafka.bootstrap));
    let port = free_port();
    let bootstrap = format!("127.0.0.1:{port}");
    let mut services = [Service::Aggregator, Service::Sink]
        .map(|kind| tally.start_with(kind, "a", &[("TALLY_KAFKA__BOOTSTRAP", &bootstrap)]));
    for service in &services {
        service.logs("the Kafka brokers do not answer").await;
        let reasons = service.readiness().await.expect_err("not ready without a broker");
        assert!(reasons.contains("partitions assigned: "), "{reasons}");
    }
    let _broker = Proxy::start(port, broker).await;
    for service in &mut services {
        service.ready().await;
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_whose_topic_was_deleted_and_made_again_stops_and_says_so() {
    let mut tally = Installation::new("made_again").await;
    for told in [
        "was deleted and made again",
        "the topic is not in Kafka; waiting for it",
        "no Kafka broker leads these",
        "Kafka does not know the topic; asking for its id",
        "trouble with a Kafka broker; librdkafka reconnects",
        "connection to the Kafka broker lost; reconnecting",
        "librdkafka: ",
    ] {
        tally.allow(told);
    }
    let kafka = tally.config.kafka.clone();
    let mut sink = tally.start(Service::Sink, "a");
    sink.ready().await;
    let admin: AdminClient<DefaultClientContext> =
        tally_kafka::client(&kafka.cluster(), "tally-it").create().expect("a client is made");
    let options = AdminOptions::new();
    let deleted =
        admin.delete_topics(&[&kafka.deltas], &options).await.expect("the broker answers");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    let topic = NewTopic::new(&kafka.deltas, kafka.partitions, TopicReplication::Fixed(1));
    let made = admin.create_topics([&topic], &options).await.expect("the broker answers");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    let status = sink.ended().await;
    assert_eq!(status.code(), Some(70), "{status}");
    sink.logs(&format!("topic {} was deleted and made again: its id was ", kafka.deltas)).await;
}
