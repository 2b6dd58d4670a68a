//! What the schema registry says, and what Tally makes of it: a message is rejected only by a no
//! that is one, and that comes from the registry whose ids the messages have.

use std::time::Instant;

use serde_json::{Value, json};
use tally_counts::Reject;
use tally_kafka::{Fetch, FetchedMessage};
use tally_platform::registry::Registry;
use tally_platform::store;
use tally_schemas::{Increment, avsc, encode, wire};

use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::odd_registry::{Odd, OddRegistry};
use crate::service::{Service, ServiceProcess};
use crate::source::batch_body;
use crate::topics;
use crate::wait::{PATIENCE, until};

const AT_MS: i64 = 1_780_000_000_000;
const STANDS_STILL: &str = "the partition waits for the schema registry";

fn event(key: &str) -> Event {
    Event::new("registry", key, 1, AT_MS)
}

/// A message of one increment by a schema.
fn by(schema: u32, event: &Event, id: Option<&str>) -> Vec<u8> {
    let mut payload = wire::prefix(schema).to_vec();
    encode::increment(&mut payload, &Increment { id, ..event.increment() });
    payload
}

/// Registers a schema of increments that no other test has.
async fn new_schema(tally: &Installation, name: &str) -> u32 {
    let mut schema: Value = serde_json::from_str(avsc::INCREMENT).expect("it is JSON");
    schema["fields"][0]["doc"] = json!(format!("{} {name}", tally.config.kafka.increments));
    let registry = Registry::new(&tally.config.registry).expect("a client is made");
    let subject = format!("{}-registry", tally.config.kafka.increments);
    registry.register(&subject, &schema.to_string()).await.expect("the registry takes it")
}

/// Aggregator and sink, the first with this registry.
fn start(tally: &Installation, registry: &OddRegistry) -> [ServiceProcess; 2] {
    let url = [("TALLY_REGISTRY__URL", registry.url.as_str())];
    [tally.start_with(Service::Aggregator, "a", &url), tally.start(Service::Sink, "a")]
}

/// The reasons of what was rejected, and their details.
async fn rejected(tally: &Installation) -> Vec<(String, String)> {
    let messages = topics::messages(&tally.config.kafka, &tally.config.kafka.rejected).await;
    let text = |message: &_, name| topics::header(message, name).expect("it is there").to_owned();
    messages.iter().map(|m| (text(m, "tally.reason"), text(m, "tally.detail"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_rejects_the_message_whatever_it_looks_like() {
    let tally = Installation::new("noes").await;
    let source = tally.source().await;
    let registry = OddRegistry::start(&tally.config.registry.url).await;
    let noes = [404, 403, 422, 410, 400];
    let ids: Vec<u32> = (0..).map(|n| 1_900_000_000 + n).take(noes.len()).collect();
    for (id, status) in ids.iter().zip(noes) {
        registry.answer(*id, Odd::Status(status));
    }
    let mut services = start(&tally, &registry);
    let mut model = Model::default();
    // No registry gives an id that is no positive number of 32 bits: it is not asked for it.
    let beyond = [i32::MAX as u32 + 1, u32::MAX];
    for (n, id) in ids.iter().copied().chain(beyond).enumerate() {
        let good = event(&format!("{n}"));
        source.single(0, &good).await;
        source.send(0, Some(&by(id, &event("lost"), None))).await;
        model.add(&good);
    }
    tally.prove(&model).await;
    let reasons: Vec<String> = rejected(&tally).await.into_iter().map(|(r, _)| r).collect();
    assert_eq!(reasons, vec![Reject::UnknownSchema.as_str(); noes.len() + beyond.len()]);
    assert!(ids.iter().all(|id| registry.asked(*id) >= 2), "a replica may lag");
    assert!(beyond.iter().all(|id| registry.asked(*id) == 0));
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_of_the_registry_has_not_heard_of_yet_counts() {
    let tally = Installation::new("lags").await;
    let source = tally.source().await;
    let new = new_schema(&tally, "new").await;
    let registry = OddRegistry::start(&tally.config.registry.url).await;
    registry.answer(new, Odd::UnknownFirst(1));
    let mut services = start(&tally, &registry);
    source.send(0, Some(&by(new, &event("new"), None))).await;
    let mut model = Model::default();
    model.add(&event("new"));
    tally.prove(&model).await;
    assert_eq!(rejected(&tally).await, []);
    for service in &mut services {
        service.terminate().await;
    }
}

/// A client that makes ids up, another one at each message: the registry is asked for many of them
/// at a time, and each is rejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_schemas_are_rejected_however_many_there_are() {
    const MADE_UP: u32 = 2_000;
    let tally = Installation::new("made_up").await;
    let source = tally.source().await;
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    services[0].ready().await;
    for id in 0..MADE_UP {
        source.send_soon(0, &by(1_800_000_000 + id, &event("lost"), None));
    }
    let mut model = Model::default();
    for n in 0..50 {
        let good = event(&format!("good {n}"));
        source.single(1, &good).await;
        model.add(&good);
    }
    source.single(0, &event("after them")).await;
    model.add(&event("after them"));
    tally.prove(&model).await;
    let ledger = store::ledgers(tally.store()).await.expect("the ledger can be read")[&0];
    assert_eq!((ledger.counted, ledger.rejected), (1, i64::from(MADE_UP)));
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_refers_to_others_is_read() {
    let tally = Installation::new("references").await;
    let source = tally.source().await;
    let prefix = &tally.config.kafka.increments;
    // The batch refers to its increment, and that to the type of its key.
    let key = json!({ "type": "record", "name": "Key", "namespace": "their", "fields": [
        { "name": "n", "type": "int" }] });
    let mut increment: Value = serde_json::from_str(avsc::INCREMENT).expect("it is JSON");
    let fields = increment["fields"].as_array_mut().expect("it has fields");
    fields.push(json!({ "name": "extra", "type": ["null", "their.Key"] }));
    let batch = json!({ "type": "record", "name": "IncrementBatch", "namespace": "tally",
        "fields": [
            { "name": "id", "type": ["null", "string"] },
            { "name": "increments", "type": { "type": "array", "items": "tally.Increment" } },
            { "name": "of", "type": ["null", "their.Key"] } ] });
    let refer = |name: &str, to: &str| {
        let subject = format!("{prefix}-{to}");
        json!({ "name": name, "subject": subject, "version": 1 })
    };
    let posts = [
        ("key", key, vec![]),
        ("increment", increment, vec![refer("their.Key", "key")]),
        ("batch", batch, vec![refer("tally.Increment", "increment"), refer("their.Key", "key")]),
    ];
    let (mut id, http) = (0, reqwest::Client::new());
    for (subject, schema, references) in posts {
        let url = format!("{}/subjects/{prefix}-{subject}/versions", tally.config.registry.url);
        let body = json!({ "schema": schema.to_string(), "references": references });
        let answer = http.post(url).json(&body).send().await.expect("the registry answers");
        let answer: Value = answer.json().await.expect("it answers in JSON");
        id = answer["id"].as_u64().unwrap_or_else(|| panic!("{subject}: {answer}")) as u32;
    }
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    // One increment with its extra field null, and null after the batch.
    let mut body = wire::prefix(id).to_vec();
    body.extend([0, 2]);
    encode::increment(&mut body, &event("referred").increment());
    body.extend([0, 0, 0]);
    source.send(0, Some(&body)).await;
    let mut model = Model::default();
    model.add(&event("referred"));
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
}

/// A registry that was restored empty, or another environment's: by its word every message by a
/// schema that is not known yet would be rejected for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lost_its_data_rejects_nothing_and_the_gateway_takes_nothing() {
    let mut tally = Installation::new("lost").await;
    tally.allow(STANDS_STILL);
    tally.allow("no increments are taken until it has them again");
    tally.allow("run `tally init`");
    tally.allow("a round of verifying failed");
    let source = tally.source().await;
    let new = new_schema(&tally, "new").await;
    let registry = OddRegistry::start(&tally.config.registry.url).await;
    let [mut aggregator, mut sink] = start(&tally, &registry);
    let url = [("TALLY_REGISTRY__URL", registry.url.as_str())];
    let mut gateway = tally.start_with(Service::Producer, "a", &url);
    source.single(0, &event("before")).await;
    let mut model = Model::default();
    model.add(&event("before"));
    tally.prove(&model).await;
    gateway.ready().await;

    registry.empty(true);
    // By its word nothing is wrong with the counts either.
    let verify = ["reconciler", "verify", "--from-beginning"];
    let said = tally.tally_in(&url, &verify).await.expect_code(69).stderr;
    assert!(said.contains("lost its data"), "{said}");
    let mut watch = tally.start_with(Service::Watch, "a", &url);
    watch.logs("lost its data").await;
    source.send(0, Some(&by(new, &event("new"), None))).await;
    aggregator.logs(STANDS_STILL).await;
    let reasons = aggregator.readiness().await.expect_err("not ready");
    assert!(reasons.contains("partition 0") && reasons.contains("lost its data"), "{reasons}");
    gateway.logs("no increments are taken until it has them again").await;
    let reasons = gateway.readiness().await.expect_err("not ready");
    assert!(reasons.contains("lost its data"), "{reasons}");
    let post = gateway.http().post(format!("{}/v1/increments", gateway.url()));
    let (status, problem) =
        gateway.call(post.json(&json!({ "namespace": "registry", "key": "no" }))).await;
    assert_eq!((status, problem["outcome"].as_str()), (503, Some("not_applied")), "{problem}");

    // Whoever starts meanwhile does not fill it again, by ids of its own.
    aggregator.terminate().await;
    aggregator.start_again();
    aggregator.logs("run `tally init`").await;
    let reasons = aggregator.readiness().await.expect_err("not ready");
    assert!(reasons.contains("the registry lost its data"), "{reasons}");
    let init = tally.tally_in(&url, &["init"]).await.expect_code(69);
    assert!(init.stderr.contains("although topic"), "{}", init.stderr);

    registry.empty(false);
    aggregator.ready().await;
    model.add(&event("new"));
    tally.prove(&model).await;
    gateway.ready().await;
    watch.counts_beyond(0.0, "tally_reconciler_verified_through", "").await;
    assert_eq!(rejected(&tally).await, []);
    for service in [&mut aggregator, &mut sink, &mut gateway, &mut watch] {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_of_a_schema_that_is_gone_are_given_up_and_new_increments_count() {
    let mut tally = Installation::new("gone").await;
    tally.allow(STANDS_STILL);
    tally.allow("the ids of messages are not remembered");
    let source = tally.source().await;
    let gone = new_schema(&tally, "gone").await;
    tally.configure(|config| config.aggregator.schema_gone_after_ms = 1_000);
    let registry = OddRegistry::start(&tally.config.registry.url).await;
    let [mut aggregator, mut sink] = start(&tally, &registry);
    let mut model = Model::default();
    source.send(0, Some(&by(gone, &event("first"), Some("1")))).await;
    source.send(0, Some(&by(source.increment_schema, &event("second"), Some("2")))).await;
    model.add_all(&[event("first"), event("second")]);
    tally.prove(&model).await;
    aggregator.terminate().await;

    registry.answer(gone, Odd::Unknown);
    aggregator.start_again();
    source.send(0, Some(&by(source.increment_schema, &event("second"), Some("2")))).await;
    source.single(0, &event("third")).await;
    model.add(&event("third"));
    aggregator.logs("the ids of messages are not remembered").await;
    tally.prove(&model).await;
    aggregator.ready().await;
    for service in [&mut aggregator, &mut sink] {
        service.terminate().await;
    }
}

/// A batch without an id begins like the prefix of a schema id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_named_in_a_header_is_no_schema_id() {
    for fetch in [Fetch::Auto, Fetch::Librdkafka] {
        let mut tally = Installation::new("guid").await;
        tally.configure(|config| config.aggregator.fetch = fetch);
        let source = tally.source().await;
        let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
        let mut model = Model::default();
        let (named, other) = ([1; FetchedMessage::SCHEMA_HEADER_BYTES], [1; 16]);
        let body = batch_body(&[event("named")]);
        assert_eq!(body[0], 0);
        source.send_with((FetchedMessage::SCHEMA_HEADER, &named), 0, &body).await;
        // Others' headers say nothing, nor does one of that name with something else in it.
        for (header, value) in [(FetchedMessage::SCHEMA_HEADER, &other[..]), ("other", &named)] {
            let good = event(&format!("{header} {}", value.len()));
            source.send_with((header, value), 0, &source.encode_single(&good)).await;
            model.add(&good);
        }
        tally.prove(&model).await;
        let rejected = rejected(&tally).await;
        let [(reason, detail)] = rejected.as_slice() else { panic!("{rejected:?}") };
        assert_eq!(reason, Reject::NotFramed.as_str());
        assert!(detail.contains(FetchedMessage::SCHEMA_HEADER), "{detail}");
        for service in &mut services {
            service.terminate().await;
        }
    }
}

/// While it hangs, who needs no new schema is counted as ever: many times between two asks. Once it
/// is back but for one schema, that one alone is waited for, though it was needed first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_hangs_holds_up_those_alone_that_need_something_of_it() {
    /// Of an ask, most of the time is the wait for its answer. One that is waited for by the thread
    /// that counts leaves time for a flush or two.
    const FLUSHES: f64 = 8.0;
    let mut tally = Installation::new("hangs").await;
    tally.allow(STANDS_STILL);
    let source = tally.source().await;
    let new = [new_schema(&tally, "first").await, new_schema(&tally, "second").await];
    let registry = OddRegistry::start(&tally.config.registry.url).await;
    let mut services = start(&tally, &registry);
    let mut model = Model::default();
    source.single(2, &event("known")).await;
    model.add(&event("known"));
    tally.prove(&model).await;

    registry.hang(true);
    for (partition, schema) in (0..).zip(new) {
        source.send(partition, Some(&by(schema, &event("new"), None))).await;
        model.add(&event("new"));
    }
    let asked = || new.map(|schema| registry.asked(schema)).into_iter().max().expect("two");
    let flushes = async || {
        let committed = "outcome=\"committed\"";
        services[0].metric("tally_aggregator_flushes_total", committed).await.expect("a metric")
    };
    let mut feed_until_asked = async |times: u32| {
        let begun = Instant::now();
        while asked() < times {
            assert!(begun.elapsed() < PATIENCE, "asked {} times only", asked());
            source.single(2, &event("known")).await;
            model.add(&event("known"));
        }
    };
    feed_until_asked(1).await;
    let before = flushes().await;
    feed_until_asked(3).await;
    let flushed = flushes().await - before;
    assert!(flushed >= FLUSHES, "{flushed} flushes between the first ask and the third");

    registry.answer(new[0], Odd::Nothing);
    registry.hang(false);
    let config = &tally.config;
    let committed = async || {
        topics::committed(&config.kafka, &config.aggregator.group, &config.kafka.increments).await
    };
    until("the second to be counted", async || match committed().await[..] {
        [first, 1, _] if first < 1 => Ok(()),
        ref other => Err(format!("{other:?} is committed")),
    })
    .await;
    registry.answer_all();
    tally.prove(&model).await;
    assert_eq!(rejected(&tally).await, []);
    for service in &mut services {
        service.terminate().await;
    }
}
