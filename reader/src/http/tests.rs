//! Real requests to a reader whose store is down: what the memory knows is answered, and nothing is
//! made up.

use std::time::Duration;

use serde_json::{Value, json};
use tally_counts::{ChainError, StoredOffsets};
use tally_platform::health::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cache::CacheLimits;
use crate::counter::Name;
use crate::counter_memory::{Broken, Snapshot, Unreadable, Wanted};
use crate::misses;
use crate::shared_memory::{Applied, SharedMemory as Shared};
use crate::standstills::Standstills;
use crate::store::Store;
use crate::vector::Vector;
use crate::window::{Arrival, Delta, Packer};

const MAX_CONNECTIONS: usize = 100;
const MAX_WAIT: Duration = Duration::from_millis(300);

struct Reader {
    url: String,
    http: reqwest::Client,
    state: Arc<Shared>,
    api: Arc<Api>,
}

struct Answered {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Reader {
    /// Two partitions, nothing counted, and a queue of misses that goes to a store where nobody
    /// listens.
    async fn start() -> Reader {
        let reader = Reader::closed().await;
        let (state, metrics) = (Arc::clone(&reader.state), Metrics::new());
        let client = clickhouse::Client::default().with_url(nobody().await);
        let store = Store::new(client, metrics.clone());
        let (sender, jobs) = misses::queue();
        reader.api.open(Reads::new(Arc::clone(&state), store.clone(), sender, MAX_WAIT, metrics));
        // Ends with the test's runtime.
        tokio::spawn(async move { misses::serve(&state, &store, jobs, &Default::default()).await });
        reader
    }

    /// A reader that has not started yet.
    async fn closed() -> Reader {
        let start = Vector::new(vec![StoredOffsets::default(); 2]);
        let cached = CacheLimits { counters: 80, bytes: 1 << 20 };
        let state = Arc::new(Shared::new(start, cached, 1 << 20));
        let api = Arc::new(Api::new(Metrics::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // Ends with the test's runtime.
        let server = server(Arc::clone(&api), MAX_CONNECTIONS);
        tokio::spawn(async move {
            server.serve(listener, &CancellationToken::new(), std::future::pending()).await;
        });
        Reader { url, http: reqwest::Client::new(), state, api }
    }

    /// Makes the memory know a counter, as a query of an empty table would.
    fn remember(&self, namespace: &str, key: &str) {
        let vector = Arc::new(Vector::new(vec![StoredOffsets::default(); 2]));
        let snapshot = Snapshot { vector, totals: Default::default() };
        let counters = [Counter::new(namespace, key)];
        self.state.begin().finish(Wanted::Counters(&counters), &snapshot).unwrap();
    }

    fn tail(&self, offset: i64, (from, to): (i64, i64), key: &str, sum: i64) -> Result<(), Broken> {
        let mut packer = Packer::with_room(1, 0);
        packer.push(Delta { name: Name::new("ns", key), bucket_s: 0, sum, events: 1 });
        let arrival = Arrival { partition: 1, offset, from, to, deltas: packer.finish() };
        assert_eq!(self.state.apply(arrival)?, Applied::Counted, "the window has room");
        Ok(())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Answered {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.json().await.unwrap();
        let problem = headers[header::CONTENT_TYPE] == "application/problem+json";
        assert_eq!(problem, status != 200, "{status}: {body}");
        Answered { status, headers, body }
    }

    async fn get(&self, path: &str) -> Answered {
        self.send(self.http.get(format!("{}{path}", self.url))).await
    }

    async fn query(&self, body: &Value) -> Answered {
        self.send(self.http.post(format!("{}/v1/counters/query", self.url)).json(body)).await
    }
}

/// The address of a port on which nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn a_hit_is_answered_without_the_store_and_follows_the_log() {
    let reader = Reader::start().await;
    reader.remember("ns", "a/b c");
    let at = |value: i64, events: i64, as_of: &str| {
        json!({
            "namespace": "ns", "key": "a/b c", "value": value, "events": events, "as_of": as_of,
        })
    };
    let answered = reader.get("/v1/counters/ns/a%2Fb%20c").await;
    assert_eq!((answered.status, answered.body), (200, at(0, 0, "0:0,1:0")));
    assert_eq!(answered.headers[header::CACHE_CONTROL], "no-store");

    reader.tail(3, (0, 40), "a/b c", -7).unwrap();
    reader.tail(5, (40, 41), "a/b c", 9).unwrap();
    let answered = reader.get("/v1/counters/ns/a%2Fb%20c?after=1:41").await;
    assert_eq!((answered.status, answered.body), (200, at(2, 2, "0:0,1:41")));
}

#[tokio::test]
async fn a_miss_is_503_while_the_store_is_down() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    let many =
        json!({"counters": [{"namespace": "ns", "key": "a"}, {"namespace": "ns", "key": "b"}]});
    for answered in [
        reader.get("/v1/counters/ns/b").await,
        reader.get("/v1/counters/ns/a?from=0").await,
        reader.query(&many).await,
    ] {
        assert_eq!(
            (answered.status, &answered.body["type"]),
            (503, &json!("urn:tally:problem:store_unavailable"))
        );
        assert_eq!(answered.headers[header::RETRY_AFTER], "1");
    }
}

#[tokio::test]
async fn a_query_answers_in_order_as_of_one_position() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    reader.remember("ns", "b");
    reader.tail(0, (0, 5), "b", 4).unwrap();
    let [a, b] = ["a", "b"].map(|key| json!({"namespace": "ns", "key": key}));
    let answered = reader.query(&json!({"counters": [b, a, b], "after": "1:5"})).await;
    let [a, b] = [("a", 0, 0), ("b", 4, 1)]
        .map(|(k, v, e)| json!({"namespace": "ns", "key": k, "value": v, "events": e}));
    assert_eq!(
        (answered.status, answered.body),
        (200, json!({"counters": [b, a, b], "as_of": "0:0,1:5"}))
    );
}

#[tokio::test]
async fn a_read_waits_for_its_position_and_not_for_ever() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    let late = reader.get("/v1/counters/ns/a?after=1:5").await;
    assert_eq!((late.status, &late.body["type"]), (504, &json!("urn:tally:problem:not_reached")));

    let (answered, ()) = tokio::join!(reader.get("/v1/counters/ns/a?after=1:5"), async {
        tokio::time::sleep(MAX_WAIT / 10).await;
        reader.tail(0, (0, 5), "a", 8).unwrap();
    });
    assert_eq!((answered.status, &answered.body["value"]), (200, &json!(8)));

    let unknown = reader.get("/v1/counters/ns/a?after=2:5").await;
    assert_eq!((unknown.status, &unknown.body["errors"][0]["field"]), (400, &json!("after")));
}

#[tokio::test]
async fn a_partition_that_stands_still_is_not_waited_for_and_what_was_counted_is_answered() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    reader.tail(0, (0, 5), "a", 8).unwrap();
    let broken = reader.tail(1, (6, 7), "a", 8).unwrap_err();
    let hole = ChainError::Hole { expected: 5, from: 6 };
    assert_eq!(broken, Broken::Chain { partition: 1, offset: 1, source: hole });

    let health = Health::new();
    let none = health.condition("no partition stands still");
    let mut standstills = Standstills::new(none, Metrics::new(), Arc::clone(&reader.state));
    let waiting = reader.get("/v1/counters/ns/a?after=1:7");
    let stand = async { standstills.stands_still(1, &broken.to_string()) };
    let (waited, ()) = tokio::join!(waiting, stand);
    assert_eq!(
        (waited.status, &waited.body["type"]),
        (503, &json!("urn:tally:problem:partition_stands_still"))
    );
    let detail = waited.body["detail"].as_str().unwrap();
    assert!(detail.contains("partition 1, offset 1") && detail.contains("(since 20"), "{detail}");
    let not_ready = health.ready().unwrap_err();
    assert!(not_ready.contains("offsets 5..6 are missing (since 20"), "{not_ready}");

    let answered = reader.get("/v1/counters/ns/a?after=1:5").await;
    assert_eq!(answered.body["value"], json!(8), "what the partition got to is exact");
    assert_eq!(answered.body["as_of"], json!("0:0,1:5"));
    let other = reader.get("/v1/counters/ns/a?after=0:1").await;
    assert_eq!(
        (other.status, &other.body["type"]),
        (504, &json!("urn:tally:problem:not_reached")),
        "another partition is waited for"
    );

    standstills.goes_on(1);
    assert_eq!(health.ready(), Ok(()));
    reader.tail(1, (5, 7), "a", 1).unwrap();
    assert_eq!(reader.get("/v1/counters/ns/a?after=1:7").await.body["value"], json!(9));
}

#[tokio::test]
async fn a_partition_that_was_added_is_waited_for() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    let added = async {
        tokio::time::sleep(MAX_WAIT / 10).await;
        reader.state.grow(3);
        let deltas = Packer::with_room(0, 0).finish();
        reader.state.apply(Arrival { partition: 2, offset: 0, from: 0, to: 5, deltas }).unwrap();
    };
    let (answered, ()) = tokio::join!(reader.get("/v1/counters/ns/a?after=2:5"), added);
    assert_eq!((answered.status, &answered.body["as_of"]), (200, &json!("0:0,1:0,2:5")));
}

#[tokio::test]
async fn a_log_that_cannot_be_read_at_all_answers_nothing_any_more() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    let waiting = reader.get("/v1/counters/ns/a?after=1:7");
    let unreadable = Arc::new(Unreadable { reason: "the client is broken".to_owned() });
    let (waited, ()) = tokio::join!(waiting, async { reader.state.break_off(unreadable) });
    for answered in
        [waited, reader.get("/v1/counters/ns/a").await, reader.get("/v1/counters/ns/unknown").await]
    {
        assert_eq!(
            (answered.status, &answered.body["type"]),
            (503, &json!("urn:tally:problem:log_broken"))
        );
    }
}

#[tokio::test]
async fn a_value_beyond_64_bits_is_told_exactly() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    reader.tail(0, (0, 1), "a", i64::MAX).unwrap();
    reader.tail(1, (1, 2), "a", 1).unwrap();
    let text = reader.http.get(format!("{}/v1/counters/ns/a", reader.url)).send();
    let text = text.await.unwrap().text().await.unwrap();
    assert!(text.contains(r#""value":9223372036854775808,"events":2,"#), "{text}");

    let answered = reader.get("/v1/counters/ns/a?numbers=string").await;
    assert_eq!(answered.body["value"], json!("9223372036854775808"));
    assert_eq!(answered.body["events"], json!("2"));
    let many = json!({"counters": [{"namespace": "ns", "key": "a"}]});
    let url = format!("{}/v1/counters/query?numbers=string", reader.url);
    let answered = reader.send(reader.http.post(url).json(&many)).await;
    assert_eq!(answered.body["counters"][0]["value"], json!("9223372036854775808"));
}

#[tokio::test]
async fn an_odd_counter_in_a_query_leaves_the_others_their_values() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    reader.remember("ns", "far");
    let far = Total { sum: i128::MAX, events: 1 };
    let vector = Arc::new(Vector::new(vec![StoredOffsets::default(); 2]));
    let totals = [(Counter::new("ns", "far"), far)].into_iter().collect();
    let counters = [Counter::new("ns", "far")];
    let snapshot = Snapshot { vector, totals };
    reader.state.begin().finish(Wanted::Counters(&counters), &snapshot).unwrap();
    reader.tail(0, (0, 5), "a", 4).unwrap();

    let counter = |namespace, key| json!({"namespace": namespace, "key": key});
    let asked = [counter("", "a"), counter("ns", "a"), counter("ns", "far"), counter("ns", "a")];
    let answered = reader.query(&json!({ "counters": asked })).await;
    let value = json!({"namespace": "ns", "key": "a", "value": 4, "events": 1});
    let error = |code: &str| format!("urn:tally:problem:{code}");
    assert_eq!(answered.status, 200);
    let counters = answered.body["counters"].as_array().unwrap();
    assert_eq!(counters[0]["error"]["type"], json!(error("invalid_request")));
    assert_eq!(counters[0]["error"]["field"], json!("namespace"));
    assert_eq!(counters[2]["error"]["type"], json!(error("value_overflow")));
    assert!(counters[2].get("value").is_none(), "{}", counters[2]);
    assert_eq!([&counters[1], &counters[3]], [&value, &value]);
    assert_eq!(answered.body["as_of"], json!("0:0,1:5"));

    let alone = reader.get("/v1/counters/ns/far").await;
    assert_eq!((alone.status, &alone.body["type"]), (500, &json!(error("value_overflow"))));
}

#[tokio::test]
async fn the_bodies_of_queries_in_progress_are_bounded_together() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    let query = json!({"counters": [{"namespace": "ns", "key": "a"}]});
    let taken = reader.api.bodies.take(BODIES_BYTES).unwrap();
    let refused = reader.query(&query).await;
    assert_eq!(
        (refused.status, &refused.body["type"]),
        (503, &json!("urn:tally:problem:overloaded"))
    );
    drop(taken);
    assert_eq!(reader.query(&query).await.status, 200);
    assert_eq!(reader.api.bodies.taken_bytes(), 0);
}

#[tokio::test]
async fn what_cannot_be_asked_is_named() {
    let reader = Reader::start().await;
    for (path, status, field) in [
        ("/v1/counters/ns/a?limit=3", 400, json!("limit")),
        ("/v1/counters/ns/a?from=x", 400, json!("from")),
        ("/v1/counters/ns/a?numbers=float", 400, json!("numbers")),
        ("/v1/counters/__tally/deltas", 400, json!("namespace")),
        ("/v1/counters/ns/%FF", 400, json!("path")),
        ("/v1/counters/ns/a/series", 404, Value::Null),
        ("/v1/counters/query", 405, Value::Null),
    ] {
        let answered = reader.get(path).await;
        assert_eq!(
            (answered.status, &answered.body["errors"][0]["field"]),
            (status, &field),
            "{path}"
        );
    }
    let answered = reader
        .query(&json!({"counters": [{"namespace": "ns", "key": "a"}, {"namespace": "ns"}]}))
        .await;
    let expected = json!([{"item": 1, "field": "key", "reason": "missing"}]);
    assert_eq!((answered.status, &answered.body["errors"]), (400, &expected));

    let text = reader
        .http
        .post(format!("{}/v1/counters/query", reader.url))
        .header("content-type", "text/plain");
    assert_eq!(reader.send(text.body("{}")).await.status, 415);
    let large = reader.http.post(format!("{}/v1/counters/query", reader.url)).body(vec![
        b' ';
        BODY_LIMIT_BYTES
            + 1
    ]);
    assert_eq!(reader.send(large).await.status, 413);
}

#[tokio::test]
async fn a_query_may_be_compressed() {
    let reader = Reader::start().await;
    reader.remember("ns", "a");
    let query = json!({"counters": [{"namespace": "ns", "key": "a"}]}).to_string();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, query.as_bytes()).unwrap();
    let url = format!("{}/v1/counters/query", reader.url);
    let post = async |encoding: &str, body: Vec<u8>| {
        let request = reader.http.post(&url).header(header::CONTENT_ENCODING, encoding);
        reader.send(request.body(body)).await
    };
    let bomb = zstd::encode_all(&vec![b' '; BODY_LIMIT_BYTES + 1][..], 0).unwrap();
    for (encoding, body, status) in [
        ("gzip", gzip.finish().unwrap(), 200),
        ("zstd", zstd::encode_all(query.as_bytes(), 0).unwrap(), 200),
        ("zstd", bomb, 413),
        ("gzip", query.clone().into_bytes(), 400),
    ] {
        let answered = post(encoding, body).await;
        assert_eq!(answered.status, status, "{encoding}: {}", answered.body);
    }
    let refused = post("br", query.into_bytes()).await;
    assert_eq!(
        (refused.status, &refused.headers[header::ACCEPT_ENCODING]),
        (415, &HeaderValue::from_static("gzip, zstd"))
    );
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let reader = Reader::start().await;
    let address = reader.url.strip_prefix("http://").unwrap();
    let bytes = BODY_LIMIT_BYTES + 1;
    let head =
        format!("POST /v1/counters/query HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n");
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(head.as_bytes()).await.unwrap();
    // All of it, before a byte of the answer is read.
    client.write_all(&vec![b' '; bytes]).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_when_to_come_again() {
    let reader = Reader::start().await;
    let address = reader.url.strip_prefix("http://").unwrap();
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let refused = reader.get("/v1/verified").await;
    assert_eq!(
        (refused.status, &refused.body["type"]),
        (503, &json!("urn:tally:problem:overloaded"))
    );
    assert_eq!(refused.headers[header::RETRY_AFTER], "1");
    drop(silent);
}

#[tokio::test]
async fn a_reader_that_has_not_started_says_so() {
    let reader = Reader::closed().await;
    let answered = reader.get("/v1/counters/ns/a").await;
    assert_eq!(
        (answered.status, &answered.body["type"]),
        (503, &json!("urn:tally:problem:not_ready"))
    );
    assert_eq!(answered.headers[header::RETRY_AFTER], "1");
}
