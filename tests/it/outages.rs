//! Parts of the stack that are away for a while.

use std::net::SocketAddr;

use serde_json::json;

use crate::dice::Dice;
use crate::feeder::{Feeder, random_events};
use crate::installation::{Installation, OVERTAKEN};
use crate::model::{Event, Model};
use crate::ports::free_port;
use crate::proxy::{Mode, Proxy};
use crate::service::Kind;

const BATCHES: &str = "tally_sink_batches_total";
const INSERTS: &str = "tally_sink_inserts_total";
const REGISTRY_PATH: &str = "/apis/ccompat/v7";

fn address(url: &str) -> SocketAddr {
    let authority =
        url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).expect("a URL with a host");
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
    let mut services = [Kind::Producer, Kind::Aggregator, Kind::Sink]
        .map(|kind| tally.start_with(kind, "a", &[("TALLY_REGISTRY__URL", &url)]));
    services[0].logs("waiting for the schemas").await;
    services[1].logs("wait for the schema registry").await;
    for (service, reason) in services.iter().zip(["schemas: ", "partitions assigned"]) {
        let reasons = service.readiness().await.expect_err("not ready without a registry");
        assert!(reasons.contains(reason), "{reasons}");
    }
    let increment = json!({ "namespace": "late", "key": "k", "delta": 5, "at": 1_780_000_000_000_i64 });
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
    let post = services[0].http().post(format!("{}/v1/increments", services[0].url())).json(&increment);
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
    let mut aggregator = tally.start_with(Kind::Aggregator, "a", &[("TALLY_REGISTRY__URL", &url)]);
    let mut sink = tally.start(Kind::Sink, "a");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_wait_for_the_registry_can_move_to_another_member() {
    let mut tally = Installation::new("waiting_moves").await;
    tally.allow("the partition waits for the schema registry");
    tally.allow(OVERTAKEN);
    let registry = Proxy::start(free_port(), address(&tally.config.registry.url)).await;
    let url = registry.url(REGISTRY_PATH);
    let mut first = tally.start_with(Kind::Aggregator, "first", &[("TALLY_REGISTRY__URL", &url)]);
    let mut sink = tally.start(Kind::Sink, "a");
    first.ready().await;
    registry.set(Mode::Refusing);
    let events = random_events(&mut Dice(81), 300);
    tally.source().await.spread(&events, 10).await;
    first.logs("the partition waits for the schema registry").await;

    let mut second = tally.start(Kind::Aggregator, "second");
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
    tally.allow("send the block again");
    tally.allow("wait for the store's ledger");
    tally.allow("read the ledger again");
    let store = Proxy::start(free_port(), address(&tally.config.store.url)).await;
    let mut aggregator = tally.start(Kind::Aggregator, "a");
    let mut sink = tally.start_with(Kind::Sink, "a", &[("TALLY_STORE__URL", &store.url(""))]);
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
    // The blocks whose answers were lost were in already, and the store refused them when they came again.
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
