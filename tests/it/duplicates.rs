//! The same id twice counts once: within a message, across messages, and across the death of
//! whoever remembered it.

use std::collections::BTreeMap;

use serde_json::json;
use tally_counts::Position;
use tally_platform::store;
use tally_schemas::{BatchEncoder, Increment, encode, wire};

use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::service::{Service, ServiceProcess};
use crate::source::Source;
use crate::topics;
use crate::wait::until;

const AT_MS: i64 = 1_780_000_000_000;
const FLUSHES: &str = "tally_aggregator_flushes_total";
const REMEMBERED: &str = "tally_aggregator_remembered_ids";
const REBUILT: &str = "tally_aggregator_rebuilt_messages_total";

/// Messages that the ledger has as counted and as duplicate.
async fn accounted(tally: &Installation) -> (i64, i64) {
    let ledgers = store::ledgers(tally.store()).await.expect("the ledger can be read");
    ledgers.values().fold((0, 0), |(counted, duplicate), ledger| {
        (counted + ledger.counted, duplicate + ledger.duplicate)
    })
}

fn event(key: &str, delta: i64) -> Event {
    Event::new("once", key, delta, AT_MS)
}

pub(crate) fn single(source: &Source, event: &Event, id: &str) -> Vec<u8> {
    let mut payload = wire::prefix(source.increment_schema).to_vec();
    encode::increment(&mut payload, &Increment { id: Some(id), ..event.increment() });
    payload
}

pub(crate) fn batch(
    source: &Source,
    batch_id: Option<&str>,
    items: &[(&Event, Option<&str>)],
) -> Vec<u8> {
    let mut batch = BatchEncoder::new();
    for (event, id) in items {
        batch.push(&Increment { id: *id, ..event.increment() });
    }
    let mut payload = wire::prefix(source.batch_schema).to_vec();
    batch.finish(&mut payload, batch_id);
    payload
}

/// Sends a request under its Idempotency-Key and returns the partition that it went to.
async fn post_once(gateway: &ServiceProcess, key: &str, body: &serde_json::Value) -> String {
    let url = format!("{}/v1/increments", gateway.url());
    let request = gateway.http().post(url).header("idempotency-key", key).json(body);
    let (status, answer) = gateway.call(request).await;
    assert_eq!(status, 200, "{answer}");
    let position = answer["position"].as_str().expect("a position");
    position.split(':').next().expect("a partition").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_request_counts_once_whatever_died_in_between() {
    let tally = Installation::new("retried").await;
    let mut gateway = tally.start(Service::Producer, "a");
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    let mut model = Model::default();
    let mut partitions: BTreeMap<String, String> = BTreeMap::new();
    let mut sent = 0;
    for round in 0..3 {
        for service in [&mut gateway, &mut aggregator] {
            service.ready().await;
        }
        // Every request so far once more, then new ones.
        for number in 0..=round {
            for kind in ["object", "array"] {
                let key = format!("{kind}-{number}");
                let item = json!({ "namespace": "once", "key": key, "delta": 3, "at": AT_MS });
                let body = if kind == "array" { json!([item, item]) } else { item };
                let partition = post_once(&gateway, &key, &body).await;
                sent += 1;
                if let Some(before) = partitions.insert(key.clone(), partition.clone()) {
                    assert_eq!(before, partition, "{key} goes where it went");
                    continue;
                }
                let times = if kind == "array" { 2 } else { 1 };
                (0..times).for_each(|_| model.add(&event(&key, 3)));
            }
        }
        if round == 0 {
            // Counted and committed, so that only the log can tell the next aggregator of it.
            tally.caught_up().await;
        }
        gateway.kill();
        aggregator.kill();
        sink.kill();
        gateway.start_again();
        aggregator.start_again();
        sink.start_again();
    }
    tally.prove(&model).await;
    assert_eq!(accounted(&tally).await, (6, sent - 6));
    aggregator.counts_beyond(0.0, REBUILT, "").await;
    for service in [&mut gateway, &mut aggregator, &mut sink] {
        service.ready().await;
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_increment_with_an_id_is_sent_where_it_was_sent_before() {
    let tally = Installation::new("single_id").await;
    let mut services =
        [Service::Producer, Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let mut model = Model::default();
    for number in 0..20 {
        let (key, id) = (format!("k{}", number % 3), format!("id-{number}"));
        let item = json!({ "namespace": "once", "key": key, "at": AT_MS, "id": id });
        for _ in 0..2 {
            let url = format!("{}/v1/increments", services[0].url());
            let (status, answer) = services[0].call(services[0].http().post(url).json(&item)).await;
            assert_eq!(status, 200, "{answer}");
        }
        model.add(&event(&key, 1));
    }
    tally.prove(&model).await;
    assert_eq!(accounted(&tally).await, (20, 20));
}

/// The gateway's answer to an array of increments, each with its counter's key, delta and id: the
/// position that includes them.
async fn post_all(gateway: &ServiceProcess, items: &[(&str, i64, &str)]) -> Position {
    let item = |(key, delta, id): &(&str, i64, &str)| {
        let (namespace, at) = ("once", AT_MS);
        json!({ "namespace": namespace, "key": key, "delta": delta, "at": at, "id": id })
    };
    let body = serde_json::Value::from(items.iter().map(item).collect::<Vec<_>>());
    let url = format!("{}/v1/increments", gateway.url());
    let (status, answer) = gateway.call(gateway.http().post(url).json(&body)).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(items.len())), "{answer}");
    answer["position"].as_str().expect("a position").parse().expect("is one")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_that_is_cut_otherwise_counts_once() {
    let tally = Installation::new("cut").await;
    let mut services =
        [Service::Producer, Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let gateway = &services[0];
    let ids: Vec<String> = (0..24).map(|number| format!("id-{number}")).collect();
    let keys = ["a", "b", "c"];
    let items: Vec<(&str, i64, &str)> = (1..)
        .zip(&ids)
        .zip(keys.into_iter().cycle())
        .map(|((delta, id), key)| (key, delta, id.as_str()))
        .collect();
    let mut model = Model::default();
    items.iter().for_each(|(key, delta, _)| model.add(&event(key, *delta)));

    let mut answered = post_all(gateway, &items).await;
    let messages = answered.iter().count();
    let mut again = items.clone();
    again.reverse();
    for part in items[1..].chunks(1).chain(again.chunks(7)).chain(items[..5].chunks(2)) {
        let position = post_all(gateway, part).await;
        position.iter().for_each(|(partition, next)| answered.advance(partition, next));
    }
    tally.prove(&model).await;
    let ends = topics::ends(&tally.config.kafka, &tally.config.kafka.increments).await;
    let ends: Position = (0..).zip(ends).collect();
    assert!(answered.includes(&ends), "Kafka ends at {ends}, the answers at {answered}");
    assert!(messages > 1, "24 ids are not all of one partition");
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_several_messages_counts_once_under_its_idempotency_key() {
    let tally = Installation::new("several").await;
    let mut services =
        [Service::Producer, Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let mut model = Model::default();
    let mut items = Vec::new();
    for number in 0..24 {
        let key = format!("k{}", number % 5);
        let mut item = json!({ "namespace": "once", "key": key, "delta": number, "at": AT_MS });
        if number % 4 != 0 {
            item["id"] = json!(format!("id-{number}"));
        }
        items.push(item);
        model.add(&event(&key, number));
    }
    let body = serde_json::Value::from(items);
    let first = post_once(&services[0], "whole", &body).await;
    for _ in 0..3 {
        assert_eq!(post_once(&services[0], "whole", &body).await, first);
    }
    tally.prove(&model).await;
    let (counted, duplicate) = accounted(&tally).await;
    assert!(counted > 1, "18 ids are not all of one partition");
    assert_eq!(duplicate, 3 * counted);
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_counts_once_for_each_counter() {
    let tally = Installation::new("of_counter").await;
    let mut services =
        [Service::Producer, Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let url = format!("{}/v1/increments", services[0].url());
    let post = async |body: serde_json::Value| {
        let (status, answer) = services[0].call(services[0].http().post(&url).json(&body)).await;
        assert_eq!(status, 200, "{answer}");
    };
    let of = |namespace: &str, key: &str, delta: i64, id: &str| {
        let at = AT_MS;
        json!({ "namespace": namespace, "key": key, "delta": delta, "at": at, "id": id })
    };
    let mut model = Model::default();
    let mut add = |namespace: &str, key: &str, delta| {
        model.add(&Event::new(namespace, key, delta, AT_MS));
    };
    for _ in 0..2 {
        post(json!([of("s", "requests", 1, "e1"), of("s", "bytes", 512, "e1")])).await;
        post(of("a", "k", 1, "1")).await;
        post(of("b", "k", 1, "1")).await;
    }
    // So many that some of them share a partition.
    let keys: Vec<String> = (0..12).map(|number| format!("key-{number}")).collect();
    post(keys.iter().map(|key| of("s", key, 7, "e1")).collect()).await;
    add("s", "requests", 1);
    add("s", "bytes", 512);
    add("a", "k", 1);
    add("b", "k", 1);
    keys.iter().for_each(|key| add("s", key, 7));
    tally.prove(&model).await;
    for (namespace, expected) in [("s", 2.0), ("a", 1.0), ("b", 1.0)] {
        let label = format!("namespace=\"{namespace}\"");
        let left_out = services[1].metric("tally_aggregator_duplicate_increments_total", &label);
        assert_eq!(left_out.await, Ok(expected), "{namespace}");
    }
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_outlive_the_aggregator_that_saw_them() {
    let tally = Installation::new("ids").await;
    let source = tally.source().await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    let (one, two, three) = (event("one", 1), event("two", 20), event("three", 300));
    let mut model = Model::default();

    let sent = [
        single(&source, &one, "a"),
        batch(
            &source,
            None,
            &[(&two, Some("b")), (&two, Some("b")), (&two, Some("a")), (&two, None)],
        ),
        batch(&source, Some("whole"), &[(&three, None), (&three, Some("c"))]),
    ];
    for payload in &sent {
        source.send(0, Some(payload)).await;
    }
    // `a` is another counter's there.
    model.add_all([&one, &two, &two, &two, &three, &three]);
    tally.prove(&model).await;
    assert_eq!(accounted(&tally).await, (3, 0));
    aggregator.counts_beyond(3.0, REMEMBERED, "").await;

    aggregator.terminate().await;
    aggregator.start_again();
    let again = [
        single(&source, &one, "a"),
        // It has the same batch's id, though it says something else.
        batch(&source, Some("whole"), &[(&one, None)]),
        batch(&source, None, &[(&three, Some("c")), (&two, Some("b"))]),
        batch(&source, None, &[(&three, Some("c")), (&two, Some("d"))]),
        // An increment's id is no batch's.
        single(&source, &one, "whole"),
    ];
    for payload in &again {
        source.send(0, Some(payload)).await;
    }
    // Another partition remembers for itself.
    source.send(1, Some(&sent[0])).await;
    model.add_all([&two, &one, &one]);
    let verified = tally.prove(&model).await;
    assert_eq!(accounted(&tally).await, (6, 3), "{verified}");
    aggregator.logs("ids remembered again").await;
    // From the message on that `a` was seen in last.
    aggregator.counts_beyond(1.0, REBUILT, "").await;
    aggregator.counts_beyond(3.0, "tally_aggregator_duplicates_total", "increment").await;
    aggregator.counts_beyond(0.0, "tally_aggregator_duplicates_total", "batch").await;
    aggregator.terminate().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_horizon_an_id_counts_again_and_verify_knows() {
    let mut tally = Installation::bare("horizon");
    tally.configure(|config| {
        config.duplicates.horizon_offsets = 1_000_000;
        config.duplicates.max_ids = 3.try_into().expect("three is not zero");
    });
    tally.tally(&["init"]).await.expect_code(0);
    let source = tally.source().await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    let one = event("one", 1);
    let mut model = Model::default();
    // The fourth pushes out `a`, which is not the one that was seen last.
    for (id, counts) in [("a", true), ("b", true), ("c", true), ("b", false), ("d", true)] {
        source.send(0, Some(&single(&source, &one, id))).await;
        counts.then(|| model.add(&one));
    }
    aggregator.counts_beyond(0.0, FLUSHES, "committed").await;
    tally.caught_up().await;
    aggregator.kill();
    aggregator.start_again();
    for (id, counts) in [("b", false), ("c", false), ("a", true), ("d", true)] {
        source.send(0, Some(&single(&source, &one, id))).await;
        counts.then(|| model.add(&one));
    }
    tally.prove(&model).await;
    assert_eq!(accounted(&tally).await, (6, 3));
    let shown = async || {
        let remembered = aggregator.metric(REMEMBERED, "partition=\"0\"").await?;
        if remembered == 3.0 { Ok(()) } else { Err(format!("{remembered} remembered")) }
    };
    until("the memory to be reported", shown).await;

    tally.configure(|config| config.duplicates.horizon_offsets = 7);
    let refused = tally.verify().await.expect_code(69).stderr;
    assert!(
        refused.contains("horizon_offsets=1000000") && refused.contains("horizon_offsets=7"),
        "{refused}"
    );
    aggregator.terminate().await;
    sink.terminate().await;
}
