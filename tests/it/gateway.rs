use std::io::Write;

use serde_json::json;
use tally_counts::Position;
use tally_platform::store;

use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::own_broker::OwnBroker;
use crate::service::{Service, ServiceProcess};
use crate::source::batch_body;
use crate::topics;
use crate::wait::until;

const AT_MS: i64 = 1_780_000_000_123;

async fn post(
    gateway: &ServiceProcess,
    media_type: &str,
    body: Vec<u8>,
) -> (u16, serde_json::Value) {
    let url = format!("{}/v1/increments", gateway.url());
    gateway.call(gateway.http().post(url).header("content-type", media_type).body(body)).await
}

fn events(prefix: &str, count: i64) -> Vec<Event> {
    (0..count)
        .map(|n| Event::new("gateway", &format!("{prefix}-{}", n % 7), n - 3, AT_MS + n * 20_000))
        .collect()
}

fn as_json(event: &Event) -> serde_json::Value {
    let Event { namespace, key, delta, at_ms, .. } = event;
    json!({ "namespace": namespace, "key": key, "delta": delta, "at": at_ms })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_increment_is_counted_once_whichever_way_it_came() {
    let tally = Installation::new("ways").await;
    let mut services =
        [Service::Producer, Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let gateway = &services[0];
    let mut model = Model::default();

    let object = json!({ "namespace": "gateway", "key": "sie & ß", "at": "2026-05-28T20:26:40Z" });
    model.add(&Event::new("gateway", "sie & ß", 1, 1_780_000_000_000));
    let (array, lines, binary) = (events("array", 40), events("line", 30), events("avro", 500));
    let ndjson = lines.iter().map(|event| format!("{}\n", as_json(event))).collect::<String>();
    let array_body =
        serde_json::Value::from(array.iter().map(as_json).collect::<Vec<_>>()).to_string();
    let requests = [
        ("application/json", object.to_string().into_bytes(), 1),
        ("application/json", array_body.into_bytes(), array.len()),
        ("application/x-ndjson", ndjson.into_bytes(), lines.len()),
        ("application/avro", batch_body(&binary), binary.len()),
    ];
    let mut answered = Position::default();
    for (media_type, body, count) in requests {
        let (status, answer) = post(gateway, media_type, body).await;
        assert_eq!((status, &answer["accepted"]), (200, &json!(count)), "{media_type}: {answer}");
        let position: Position =
            answer["position"].as_str().expect("a position").parse().expect("is one");
        assert_eq!(position.iter().count(), 1, "a request is one message: {position}");
        position.iter().for_each(|(partition, next)| answered.advance(partition, next));
    }
    let ends = topics::ends(&tally.config.kafka, &tally.config.kafka.increments).await;
    let log: Position = (0..).zip(ends).collect();
    assert!(log.includes(&answered), "answered {answered}, but Kafka ends at {log}");

    let source = tally.source().await;
    let (single, direct) = (events("single", 20), events("batch", 2_000));
    for (event, partition) in single.iter().zip((0..source.partitions()).cycle()) {
        source.single(partition, event).await;
    }
    source.spread(&direct, 100).await;
    for sent in [&array, &lines, &binary, &single, &direct] {
        model.add_all(sent);
    }
    tally.prove(&model).await;

    let count = async |what: &str| -> u64 {
        let sql = format!("SELECT count() FROM {what} WHERE namespace = '__tally'");
        tally.store().query(&sql).fetch_one().await.expect("a count")
    };
    assert!(count("counts").await > 0, "the ledger is in the table");
    assert_eq!(count("counters").await, 0, "and not in the view");
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_bad_item_is_refused_as_a_whole_and_names_it() {
    let tally = Installation::new("bad_item").await;
    let mut services =
        [Service::Producer, Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let gateway = &services[0];
    let good = events("good", 3);
    let body = json!([as_json(&good[0]), { "namespace": "gateway", "key": "", "at": AT_MS }]);
    let (status, problem) = post(gateway, "application/json", body.to_string().into_bytes()).await;
    assert_eq!(status, 400, "{problem}");
    let text = problem.to_string();
    assert!(text.contains(r#""item":1"#) && text.contains(r#""field":"key""#), "{text}");

    let lines = good.iter().map(|event| format!("{}\n", as_json(event))).collect::<String>();
    assert_eq!(post(gateway, "application/x-ndjson", lines.into_bytes()).await.0, 200);
    let mut model = Model::default();
    model.add_all(&good);
    tally.prove(&model).await;
}

/// Compressed lines after a byte order mark, integers in other notations, nulls, under the media
/// types that shippers have for them; and one whose times are in seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_shippers_send_is_counted_and_a_time_in_seconds_is_refused() {
    let tally = Installation::new("shippers").await;
    let mut services =
        [Service::Producer, Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let gateway = &services[0];
    let send = async |media_type: &str, encoding: &str, body: Vec<u8>| {
        let url = format!("{}/v1/increments", gateway.url());
        let request = gateway.http().post(url).header("content-type", media_type);
        gateway.call(request.header("content-encoding", encoding).body(body)).await
    };
    let mut model = Model::default();
    let lines = format!(
        "\u{feff}{{\"namespace\":\"s\",\"key\":\"k\",\"delta\":1e3,\"at\":{AT_MS}.0}}\r\n\
         {{\"namespace\":\"s\",\"key\":\"k\",\"delta\":-0,\"at\":{AT_MS},\"id\":null}}\n\
         {{\"namespace\":\"s\",\"key\":\"k\",\"delta\":9007199254740993.0,\"at\":{AT_MS}}}\n"
    );
    for delta in [1000, 0, 9_007_199_254_740_993] {
        model.add(&Event::new("s", "k", delta, AT_MS));
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(lines.as_bytes()).expect("memory takes all");
    let lines = gzip.finish().expect("memory takes all");
    let (status, answer) = send("application/jsonl; charset=utf-8", "gzip", lines).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(3)), "{answer}");

    let binary = events("avro", 500);
    model.add_all(&binary);
    let batch = zstd::encode_all(&batch_body(&binary)[..], 0).expect("memory takes all");
    let (status, answer) = send("application/avro", "zstd", batch).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(500)), "{answer}");

    // Some kilobytes that come to a gibibyte.
    let blank = vec![b' '; 64 << 20];
    let bomb = zstd::encode_all(&blank[..], 0).expect("memory takes all").repeat(16);
    let (status, problem) = send("application/json", "zstd", bomb).await;
    assert_eq!((status, &problem["outcome"]), (413, &json!("not_applied")), "{problem}");
    let bytes = gateway.peak_memory_bytes();
    assert!(bytes < 200 << 20, "the gateway took {bytes} bytes");

    let at = AT_MS / 1000;
    let item = |at: i64| json!({ "namespace": "s", "key": "k", "at": at });
    let body = json!([item(AT_MS), item(at)]).to_string();
    let (status, problem) = send("application/json", "identity", body.into_bytes()).await;
    let [error] = &problem["errors"].as_array().expect("a list")[..] else { panic!("{problem}") };
    assert_eq!((status, &error["item"], &error["field"]), (400, &json!(1), &json!("at")));
    let reason = error["reason"].as_str().expect("a text");
    assert!(reason.contains("2000-01-01T00:00:00Z") && reason.contains("seconds?"), "{reason}");

    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_stored_yet_is_lag_and_not_a_mismatch() {
    let tally = Installation::new("lag").await;
    let source = tally.source().await;
    let (before, after) = (events("before", 300), events("after", 300));
    let mut model = Model::default();
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    source.spread(&before, 20).await;
    model.add_all(&before);
    tally.prove(&model).await;

    sink.terminate().await;
    source.spread(&after, 20).await;
    let committed = async || {
        let counted = aggregator.metric("tally_aggregator_increments_total", "").await?;
        if counted >= 600.0 { Ok(()) } else { Err(format!("{counted} counted")) }
    };
    until("the aggregator to commit the rest", committed).await;
    let verified = tally.verify().await.expect_code(0).stdout;
    assert!(verified.contains(" 300 increments"), "{verified}");
    let ledgers = store::ledgers(tally.store()).await.expect("the ledger can be read");
    assert_eq!(ledgers.values().map(|ledger| ledger.counted_increments).sum::<i64>(), 300);

    sink.start_again();
    model.add_all(&after);
    tally.prove(&model).await;
    aggregator.terminate().await;
    sink.terminate().await;
}

/// The broker is stopped in the middle of what it does: its kernel still takes the message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_takes_and_does_not_answer_is_unknown_and_counts_once_by_its_id() {
    let broker = OwnBroker::start("silent", &[]).await;
    let mut tally = Installation::bare("silent");
    tally.allow("Kafka");
    tally.configure(|config| {
        config.kafka.bootstrap = broker.address.to_string();
        config.producer.delivery_timeout_ms = 3_000;
    });
    tally.tally(&["init"]).await.expect_code(0);
    let mut services =
        [Service::Producer, Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let events = events("silent", 2);
    let mut model = Model::default();
    model.add_all(&events);
    let post_by_id = async |number: usize| {
        let mut item = as_json(&events[number]);
        item["id"] = json!(format!("silent {number}"));
        post(&services[0], "application/json", item.to_string().into_bytes()).await
    };
    let (status, answer) = post_by_id(0).await;
    assert_eq!(status, 200, "{answer}");
    tally.caught_up().await;

    broker.freeze();
    let (status, problem) = post_by_id(1).await;
    assert_eq!((status, &problem["outcome"]), (504, &json!("unknown")), "{problem}");
    broker.thaw();
    until("the same to be accepted", async || match post_by_id(1).await {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    tally.prove(&model).await;
    for service in &mut services {
        service.ready().await;
        service.terminate().await;
    }
}
