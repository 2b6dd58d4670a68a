//! The reader: values from its memory and from the store, and what a position asks of it.

use std::time::Duration;

use serde_json::{Value, json};
use tally_counts::Position;

use crate::dice::Dice;
use crate::feeder::{Feeder, random_events};
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::service::{Service, ServiceProcess};

/// What a query may ask for.
const MOST_COUNTERS: usize = 1_000;

/// A counter's path, its names escaped.
pub(crate) fn counter_url(
    reader: &ServiceProcess,
    namespace: &str,
    key: &str,
    query: &str,
) -> reqwest::Url {
    let mut url = reqwest::Url::parse(&reader.url()).expect("an address makes a URL");
    url.path_segments_mut().expect("it has a path").extend(["v1", "counters", namespace, key]);
    url.set_query((!query.is_empty()).then_some(query));
    url
}

pub(crate) async fn read(
    reader: &ServiceProcess,
    namespace: &str,
    key: &str,
    query: &str,
) -> Value {
    let request = reader.http().get(counter_url(reader, namespace, key, query));
    let (status, answer) = reader.call(request).await;
    assert_eq!(status, 200, "{namespace}/{key}?{query}: {answer}");
    assert_eq!((&answer["namespace"], &answer["key"]), (&json!(namespace), &json!(key)));
    answer
}

pub(crate) fn total(answer: &Value) -> (i128, i64) {
    let number =
        |field: &str| answer[field].as_i64().unwrap_or_else(|| panic!("{field} of {answer}"));
    (number("value").into(), number("events"))
}

/// Every counter of the model in the model's order, as many in a call as it takes, as of `after`.
pub(crate) async fn read_all(
    reader: &ServiceProcess,
    model: &Model,
    after: &str,
) -> Vec<(i128, i64)> {
    let names: Vec<_> = model.counters().into_keys().collect();
    let mut totals = Vec::new();
    for names in names.chunks(MOST_COUNTERS) {
        let asked: Vec<Value> = names
            .iter()
            .map(|(namespace, key)| json!({ "namespace": namespace, "key": key }))
            .collect();
        let url = format!("{}/v1/counters/query", reader.url());
        let request = reader.http().post(url).json(&json!({ "counters": asked, "after": after }));
        let (status, answer) = reader.call(request).await;
        assert_eq!(status, 200, "{answer}");
        let answers = answer["counters"].as_array().expect("an array of counters");
        assert_eq!(answers.len(), names.len());
        for (answer, (namespace, key)) in answers.iter().zip(names) {
            assert_eq!(
                (&answer["namespace"], &answer["key"]),
                (&json!(namespace), &json!(key)),
                "in order"
            );
        }
        totals.extend(answers.iter().map(total));
    }
    totals
}

pub(crate) async fn log_end(tally: &Installation) -> String {
    let ends = crate::topics::ends(&tally.config.kafka, &tally.config.kafka.increments).await;
    (0..).zip(ends).collect::<Position>().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reader_answers_what_the_log_comes_to_under_load_and_after_it() {
    let tally = Installation::new("reader").await;
    let source = tally.source().await;
    let mut model = Model::default();
    let early = random_events(&mut Dice(16), 2_000);
    source.spread(&early, 50).await;
    model.add_all(&early);
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.caught_up().await;

    // What it starts with is in the store; what comes then, it reads from the log.
    let mut reader = tally.start(Service::Reader, "a");
    reader.ready().await;
    let expected = |model: &Model| model.counters().into_values().collect::<Vec<_>>();
    assert_eq!(read_all(&reader, &model, "").await, expected(&model));

    let load = Feeder::start(&source, 17);
    let (mut value, hot) = ((0, 0), "key-0");
    for _ in 0..50 {
        let answer = total(&read(&reader, "web", hot, "").await);
        assert!(
            answer.1 >= value.1,
            "the count of events went back from {} to {}",
            value.1,
            answer.1
        );
        value = answer;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    load.goes_on().await;
    model.merge(load.stop().await);
    let end = log_end(&tally).await;
    assert_eq!(read_all(&reader, &model, &end).await, expected(&model));
    assert_eq!(
        total(&read(&reader, "nobody", "counted this", &format!("after={end}")).await),
        (0, 0)
    );

    tally.prove(&model).await;
    assert_eq!(read_all(&reader, &model, &end).await, expected(&model));
    reader.terminate().await;
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_sends_back_the_position_of_a_write_includes_it() {
    let tally = Installation::new("own_writes").await;
    let kinds = [Service::Producer, Service::Aggregator, Service::Sink, Service::Reader];
    let mut services = kinds.map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let (gateway, reader) = (&services[0], &services[3]);
    let mut model = Model::default();
    for round in 1..=20 {
        let event = Event::new("own", "50% of /a b?", round, 1_780_000_000_000 + round * 15_000);
        let Event { namespace, key, delta, at_ms, .. } = &event;
        let body = json!({ "namespace": namespace, "key": key, "delta": delta, "at": at_ms });
        let request = gateway.http().post(format!("{}/v1/increments", gateway.url())).json(&body);
        let (status, answer) = gateway.call(request).await;
        assert_eq!(status, 200, "{answer}");
        let position = answer["position"].as_str().expect("a position");
        model.add(&event);
        let answer = read(reader, &event.namespace, &event.key, &format!("after={position}")).await;
        assert_eq!(total(&answer), ((round * (round + 1) / 2).into(), round), "{answer}");
        let (as_of, wanted): (Position, Position) = (
            answer["as_of"].as_str().expect("a position").parse().expect("is one"),
            position.parse().expect("is one"),
        );
        assert!(as_of.includes(&wanted), "as of {as_of}, but {wanted} was asked for");
    }

    let event = Event::new("own", "ids", 1, 1_780_000_000_000);
    let item =
        |id| json!({ "namespace": event.namespace, "key": event.key, "at": event.at_ms, "id": id });
    let body: Value = (0..24).map(|number| item(format!("id-{number}"))).collect();
    let request = gateway.http().post(format!("{}/v1/increments", gateway.url())).json(&body);
    let (status, answer) = gateway.call(request).await;
    assert_eq!(status, 200, "{answer}");
    let position = answer["position"].as_str().expect("a position");
    assert!(position.contains(','), "24 ids are not all of one partition: {position}");
    let answer = read(reader, &event.namespace, &event.key, &format!("after={position}")).await;
    assert_eq!(total(&answer), (24, 24), "{answer}");
    (0..24).for_each(|_| model.add(&event));
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_store_is_behind_answers_from_the_log() {
    let tally = Installation::new("unstored").await;
    let source = tally.source().await;
    let mut services =
        [Service::Aggregator, Service::Sink, Service::Reader].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let stored = random_events(&mut Dice(18), 500);
    source.spread(&stored, 25).await;
    tally.caught_up().await;
    services[1].terminate().await;

    let waiting = random_events(&mut Dice(19), 500);
    source.spread(&waiting, 25).await;
    let mut model = Model::default();
    model.add_all(stored.iter().chain(&waiting));
    let end = log_end(&tally).await;
    let expected: Vec<_> = model.counters().into_values().collect();
    assert_eq!(read_all(&services[2], &model, &end).await, expected);
    let behind: i64 = tally.totals().await.into_values().map(|(_, events)| events).sum();
    assert_eq!(behind, 500, "the store had only the first half meanwhile");

    services[1].start_again();
    tally.prove(&model).await;
    assert_eq!(read_all(&services[2], &model, &end).await, expected);
}
