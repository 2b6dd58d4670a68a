//! The gateway over HTTP against librdkafka's mock cluster, which can fail in ways that a real
//! broker cannot be asked to.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::FutureExt;
use rdkafka::bindings::rd_kafka_resp_err_t as RespErr;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Message as _, OwnedMessage};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey;
use rdkafka::{Offset, TopicPartitionList};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tally_counts::Position;
use tally_platform::config;
use tally_schemas::{Plan, avsc, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::message::SchemaIds;
use crate::partitioner::Partitioner;
use crate::run;

const SCHEMA_IDS: SchemaIds = SchemaIds { increment: 7, batch: 8 };
const PARTITIONS: i32 = 4;
const BROKER: i32 = 1;

struct Stack {
    cluster: MockCluster<'static, DefaultProducerContext>,
    config: Config,
    gateway: Arc<Gateway>,
    url: String,
    http: reqwest::Client,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Stack {
    async fn new(producer: config::Producer) -> Stack {
        let stack = Stack::closed(producer).await;
        stack.gateway.open(Prerequisites { schema_ids: SCHEMA_IDS, max_message_bytes: None });
        stack
    }

    /// Not open for increments yet.
    async fn closed(producer: config::Producer) -> Stack {
        Stack::configured(Config { producer, ..Config::default() }).await
    }

    async fn configured(mut config: Config) -> Stack {
        let cluster = MockCluster::new(1).unwrap();
        config.kafka.bootstrap = cluster.bootstrap_servers();
        cluster.create_topic(&config.kafka.increments, PARTITIONS, 1).unwrap();

        let metrics = Metrics::new();
        let log = Arc::new(KafkaLog::new(&config, metrics.clone()).unwrap());
        let checked = Arc::clone(&log);
        tokio::task::spawn_blocking(move || checked.check()).await.unwrap().unwrap();
        let gateway = Arc::new(Gateway::new(&config, log, metrics));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/increments", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let server = tokio::spawn({
            let (config, gateway) = (config.clone(), Arc::clone(&gateway));
            let shutdown = shutdown.clone();
            async move { run::serve(listener, &config, &gateway, &shutdown).await }
        });
        Stack { cluster, config, gateway, url, http: reqwest::Client::new(), shutdown, server }
    }

    fn post(&self) -> RequestBuilder {
        self.http.post(&self.url)
    }

    /// A connection on which the beginning of a request is sent.
    async fn begin(&self, headers: &str, body: &[u8]) -> TcpStream {
        let address = self.url.strip_prefix("http://").unwrap();
        let address = address.strip_suffix("/v1/increments").unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let head = format!("POST /v1/increments HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n");
        client.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        client
    }

    /// Waits until so many bytes of bodies have arrived.
    async fn arrived(&self, bytes: usize) {
        let arrived = async {
            while self.gateway.bodies.taken_bytes() < bytes {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), arrived).await.expect("they arrive");
    }

    async fn post_one(&self) -> Answer {
        answer(self.post().json(&json!({"namespace": "n", "key": "k"}))).await
    }

    /// The message before a position of one partition.
    fn stored(&self, position: &str) -> OwnedMessage {
        let position: Position = position.parse().unwrap();
        let [(partition, next)] = position.iter().collect::<Vec<_>>()[..] else {
            panic!("{position} is not of one partition");
        };
        self.stored_in(partition, next)
    }

    /// The message before the offset `next`.
    fn stored_in(&self, partition: i32, next: i64) -> OwnedMessage {
        let consumer: BaseConsumer =
            tally_kafka::consumer(&self.config.kafka.cluster(), "test", "test").create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(
            &self.config.kafka.increments,
            partition,
            Offset::Offset(next - 1),
        )
        .unwrap();
        consumer.assign(&from).unwrap();
        let message =
            consumer.poll(Duration::from_secs(10)).expect("a message before the position").unwrap();
        assert_eq!((message.partition(), message.offset()), (partition, next - 1));
        message.detach()
    }

    async fn end(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), self.server).await;
        ended.expect("the server ends after shutdown").unwrap();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    content_type: String,
    retry_after: Option<String>,
    body: Value,
}

impl Answer {
    fn problem(&self) -> (u16, &str, &str) {
        assert_eq!(self.content_type, "application/problem+json");
        assert_eq!(self.body["status"], self.status);
        let kind = self.body["type"].as_str().unwrap().strip_prefix("urn:tally:problem:").unwrap();
        (self.status, kind, self.body["outcome"].as_str().unwrap())
    }

    fn position(&self) -> &str {
        assert_eq!((self.status, &*self.content_type), (200, "application/json"), "{self:?}");
        self.body["position"].as_str().unwrap()
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let header =
        |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    Answer {
        status: response.status().as_u16(),
        content_type: header("content-type").unwrap(),
        retry_after: header("retry-after"),
        body: response.json().await.unwrap(),
    }
}

fn quick() -> config::Producer {
    config::Producer { delivery_timeout_ms: 1_000, ..config::Producer::default() }
}

#[tokio::test]
async fn an_answer_tells_where_the_increment_is_in_the_log() {
    let stack = Stack::new(config::Producer::default()).await;
    let increment =
        json!({"namespace": "web", "key": "hits", "delta": -3, "at": 1_700_000_000_000i64});
    let accepted = answer(stack.post().json(&increment)).await;
    assert_eq!(accepted.body["accepted"], 1);
    let message = stack.stored(accepted.position());
    assert_eq!(message.key(), Some(&b"web\0hits"[..]));
    let (schema_id, body) = wire::split(message.payload().unwrap()).unwrap();
    assert_eq!(schema_id, SCHEMA_IDS.increment);
    let mut increments = Vec::new();
    Plan::new(avsc::INCREMENT).unwrap().decode_into(body, &mut increments).unwrap();
    assert_eq!(
        (increments[0].namespace, increments[0].key, increments[0].delta),
        ("web", "hits", -3)
    );
    stack.end().await;
}

#[tokio::test]
async fn the_same_idempotency_key_finds_the_same_partition() {
    let stack = Stack::new(config::Producer::default()).await;
    let lines = "{\"namespace\":\"n\",\"key\":\"a\"}\n{\"namespace\":\"n\",\"key\":\"b\"}\n";
    let mut partitions = Vec::new();
    for _ in 0..8 {
        let request = stack.post().header("content-type", "application/x-ndjson");
        let accepted = answer(request.header("idempotency-key", "once").body(lines)).await;
        assert_eq!(accepted.body["accepted"], 2);
        let message = stack.stored(accepted.position());
        let (schema_id, body) = wire::split(message.payload().unwrap()).unwrap();
        let read =
            Plan::new(avsc::INCREMENT_BATCH).unwrap().decode_into(body, &mut Vec::new()).unwrap();
        assert_eq!((schema_id, read.id, read.increments), (SCHEMA_IDS.batch, Some("once"), 2));
        partitions.push(message.partition());
    }
    partitions.dedup();
    assert_eq!(partitions.len(), 1, "{partitions:?}");
    stack.end().await;
}

fn with_ids<'i>(ids: impl IntoIterator<Item = &'i str>) -> Value {
    ids.into_iter().map(|id| json!({"namespace": "n", "key": "k", "id": id})).collect()
}

/// An increment's id for each of two partitions.
fn ids_of_two_partitions() -> [&'static str; 2] {
    const IDS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let partitions = NonZeroU32::new(PARTITIONS.cast_unsigned()).unwrap();
    let mut partitioner = Partitioner::new(partitions);
    let mut partition = |id| partitioner.partition("n", "k", id);
    let first = partition(IDS[0]);
    let other = IDS.into_iter().find(|id| partition(id) != first);
    [IDS[0], other.expect("four partitions take one each")]
}

#[tokio::test]
async fn increments_with_ids_go_each_to_its_partition_and_the_answer_tells_all() {
    let stack = Stack::new(config::Producer::default()).await;
    let ids: Vec<String> = (0..24).map(|number| format!("id-{number}")).collect();
    let mut found: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    let mut post = async |ids: &[String]| {
        let body = with_ids(ids.iter().map(String::as_str));
        let accepted = answer(stack.post().json(&body)).await;
        assert_eq!(accepted.body["accepted"], ids.len());
        let position: Position = accepted.position().parse().unwrap();
        let mut increments = 0;
        for (partition, next) in position.iter() {
            let message = stack.stored_in(partition, next);
            let (schema_id, body) = wire::split(message.payload().unwrap()).unwrap();
            assert_eq!(schema_id, SCHEMA_IDS.batch);
            let mut read = Vec::new();
            Plan::new(avsc::INCREMENT_BATCH).unwrap().decode_into(body, &mut read).unwrap();
            for increment in &read {
                found.entry(increment.id.unwrap().to_owned()).or_default().insert(partition);
            }
            increments += read.len();
        }
        assert_eq!(increments, ids.len(), "the position includes every increment");
        position.iter().count()
    };
    assert!(post(&ids).await > 1, "24 ids are not all of one partition");
    for part in ids.rchunks(5) {
        post(part).await;
    }
    assert_eq!(found.len(), ids.len());
    assert!(found.values().all(|partitions| partitions.len() == 1), "{found:?}");
    stack.end().await;
}

#[tokio::test]
async fn a_request_that_got_into_the_log_in_part_is_neither_accepted_nor_refused() {
    let stack = Stack::new(quick()).await;
    let too_long = RespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    stack.cluster.request_errors(RDKafkaApiKey::Produce, &[too_long]);
    let body = with_ids(ids_of_two_partitions());
    let in_part = answer(stack.post().json(&body)).await;
    assert_eq!(in_part.problem(), (504, "partly_delivered", "unknown"));
    assert_eq!(in_part.retry_after, None);
    let detail = in_part.body["detail"].as_str().unwrap();
    assert!(detail.starts_with("1 of the request's 2 messages"), "{detail}");
    assert!(detail.ends_with(" or ids, each of its increments counts once"), "{detail}");
    assert_eq!(answer(stack.post().json(&body)).await.status, 200);
    stack.end().await;
}

#[tokio::test]
async fn a_request_of_which_the_log_took_nothing_is_refused() {
    let stack = Stack::new(quick()).await;
    let too_long = RespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    stack.cluster.request_errors(RDKafkaApiKey::Produce, &[too_long, too_long]);
    let body = with_ids(ids_of_two_partitions());
    let refused = answer(stack.post().json(&body)).await;
    assert_eq!(refused.problem(), (413, "message_too_large", "not_applied"));
    stack.end().await;
}

#[tokio::test]
async fn a_request_whose_messages_the_broker_did_not_confirm_says_what_sending_it_again_does() {
    let stack = Stack::new(quick()).await;
    assert_eq!(stack.post_one().await.status, 200);
    stack.cluster.broker_round_trip_time(BROKER, Duration::from_secs(4)).unwrap();
    let mut body = with_ids(ids_of_two_partitions());
    body.as_array_mut().unwrap().push(json!({"namespace": "n", "key": "bare"}));
    let unknown = answer(stack.post().json(&body)).await;
    assert_eq!(unknown.problem(), (504, "delivery_unknown", "unknown"));
    let detail = unknown.body["detail"].as_str().unwrap();
    assert!(detail.contains("each increment that has one counts once"), "{detail}");
    assert!(detail.ends_with("the 1 without one may count twice"), "{detail}");
    stack.cluster.broker_round_trip_time(BROKER, Duration::ZERO).unwrap();
    stack.end().await;
}

#[tokio::test]
async fn nothing_is_handed_over_before_there_is_room_for_all_of_it() {
    let mut config = Config { producer: quick(), ..Config::default() };
    let limit = "queue.buffering.max.messages".to_owned();
    config.kafka.properties.insert(limit, "1".to_owned());
    let stack = Stack::configured(config).await;
    stack.gateway.open(Prerequisites { schema_ids: SCHEMA_IDS, max_message_bytes: None });
    let refused = answer(stack.post().json(&with_ids(ids_of_two_partitions()))).await;
    assert_eq!(refused.problem(), (503, "overloaded", "not_applied"));
    for id in ids_of_two_partitions() {
        let accepted = answer(stack.post().json(&with_ids([id]))).await;
        assert!(accepted.position().ends_with(":1"), "the log is not empty: {accepted:?}");
    }
    stack.end().await;
}

#[tokio::test]
async fn one_bad_item_keeps_the_whole_request_out() {
    let stack = Stack::new(quick()).await;
    let body =
        json!([{"namespace": "n", "key": "k"}, {"namespace": "n", "key": "k", "delta": 1.5}]);
    let refused = answer(stack.post().json(&body)).await;
    assert_eq!(refused.problem(), (400, "invalid_increments", "not_applied"));
    let reason = "must be an integer, not a number with a fraction";
    assert_eq!(refused.body["errors"], json!([{"item": 1, "field": "delta", "reason": reason}]));
    let first = stack.post_one().await;
    assert!(first.position().ends_with(":1"), "the log is not empty: {first:?}");
    stack.end().await;
}

#[tokio::test]
async fn what_is_not_a_request_for_the_gateway_is_a_problem_too() {
    let stack = Stack::new(quick()).await;
    let elsewhere = answer(stack.http.get(stack.url.replace("/v1/", "/v2/"))).await;
    assert_eq!(elsewhere.problem(), (404, "not_found", "not_applied"));
    let get = stack.http.get(&stack.url).send().await.unwrap();
    assert_eq!(get.headers()["allow"], "POST");
    assert_eq!(
        answer(stack.http.get(&stack.url)).await.problem(),
        (405, "method_not_allowed", "not_applied")
    );
    let text = stack.post().header("content-type", "text/plain").body("n k 1");
    assert_eq!(answer(text).await.problem(), (415, "unsupported_media_type", "not_applied"));
    let quoted = stack.post().header("idempotency-key", "").body("{}");
    assert_eq!(answer(quoted).await.problem(), (400, "invalid_idempotency_key", "not_applied"));
    stack.end().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_with_the_limit() {
    let producer = config::Producer {
        body_limit_bytes: 2000,
        max_increments_per_second: NonZeroU32::new(20),
        ..config::Producer::default()
    };
    let stack = Stack::closed(producer).await;
    stack.gateway.open(Prerequisites { schema_ids: SCHEMA_IDS, max_message_bytes: Some(1000) });
    let of = |keys: usize, key_bytes: usize| {
        let key = "k".repeat(key_bytes);
        stack.post().json(&vec![json!({"namespace": "n", "key": key}); keys])
    };
    let body = answer(of(1, 2000)).await;
    assert_eq!(body.problem(), (413, "body_too_large", "not_applied"));
    assert!(body.body["detail"].as_str().unwrap().contains("2000 bytes"), "{body:?}");
    let message = answer(of(1, 1000)).await;
    assert_eq!(message.problem(), (413, "message_too_large", "not_applied"));
    assert!(
        message.body["detail"].as_str().unwrap().ends_with("max.message.bytes is 1000"),
        "{message:?}"
    );
    let many = answer(of(21, 1)).await;
    assert_eq!(many.problem(), (413, "too_many_increments", "not_applied"));
    assert_eq!(answer(of(20, 1)).await.status, 200);
    let limited = answer(of(20, 1)).await;
    assert_eq!(limited.problem(), (429, "rate_limited", "not_applied"));
    assert_eq!(limited.retry_after.as_deref(), Some("1"));
    stack.end().await;
}

#[tokio::test]
async fn a_compressed_body_is_read_and_a_bomb_is_refused() {
    let stack = Stack::new(config::Producer { body_limit_bytes: 10_000, ..quick() }).await;
    let gzip = |plain: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, plain).unwrap();
        gzip.finish().unwrap()
    };
    let zstd = |plain: &[u8]| zstd::encode_all(plain, 0).unwrap();
    let increment = br#"{"namespace":"n","key":"k","delta":5}"#;
    let bomb = vec![b' '; 64 << 20];
    let post = async |encoding: &str, body: Vec<u8>| {
        answer(stack.post().header("content-encoding", encoding).body(body)).await
    };
    for (encoding, body, bomb) in
        [("gzip", gzip(increment), gzip(&bomb)), ("zstd", zstd(increment), zstd(&bomb))]
    {
        let accepted = post(encoding, body).await;
        assert_eq!((accepted.status, &accepted.body["accepted"]), (200, &json!(1)), "{encoding}");
        let refused = post(encoding, bomb).await;
        assert_eq!(refused.problem(), (413, "body_too_large", "not_applied"), "{encoding}");
        let broken = post(encoding, increment.to_vec()).await;
        assert_eq!(broken.problem(), (400, "malformed_body", "not_applied"), "{encoding}");
    }
    assert_eq!(stack.gateway.bodies.taken_bytes(), 0);
    let unknown = stack.post().header("content-encoding", "br").body("{}");
    let refused = unknown.try_clone().unwrap().send().await.unwrap();
    assert_eq!(refused.headers()["accept-encoding"], "gzip, zstd");
    let refused = answer(unknown).await;
    assert_eq!(refused.problem(), (415, "unsupported_content_encoding", "not_applied"));
    stack.end().await;
}

#[tokio::test]
async fn bodies_that_arrive_slowly_keep_nobody_out() {
    let stack = Stack::new(config::Producer { max_in_flight: 1, ..quick() }).await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        slow.push(stack.begin("content-length: 27", br#"{"namespace":"n","#).await);
    }
    stack.arrived(50 * 17).await;
    assert_eq!(stack.post_one().await.status, 200);
    for mut client in slow {
        client.write_all(br#""key":"k"}"#).await.unwrap();
        let mut answer = [0; 15];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
    stack.end().await;
}

#[tokio::test]
async fn bodies_take_no_more_memory_than_they_may() {
    let producer =
        config::Producer { body_limit_bytes: 1000, max_bytes_in_flight: 2000, ..quick() };
    let stack = Stack::new(producer).await;
    let half = [stack.begin("content-length: 1000", &[b' '; 990]).await];
    stack.arrived(990).await;
    let more = [stack.begin("content-length: 1000", &[b' '; 990]).await];
    stack.arrived(1980).await;
    let refused = stack.post_one().await;
    assert_eq!(refused.problem(), (503, "overloaded", "not_applied"));
    assert_eq!(refused.retry_after.as_deref(), Some("1"));
    drop((half, more));
    let freed = async { while stack.post_one().await.status != 200 {} };
    tokio::time::timeout(Duration::from_secs(20), freed).await.expect("there is room again");
    stack.end().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let stack = Stack::new(quick()).await;
    let bytes = 32 << 20;
    for (headers, status) in [
        ("", "413 Payload Too Large"),
        ("content-type: text/plain\r\n", "415 Unsupported Media Type"),
    ] {
        for framing in [format!("content-length: {bytes}"), "transfer-encoding: chunked".into()] {
            let mut client = stack.begin(&format!("{headers}{framing}"), b"").await;
            if framing.contains("chunked") {
                client.write_all(format!("{bytes:x}\r\n").as_bytes()).await.unwrap();
            }
            // All of it, before a byte of the answer is read.
            client.write_all(&vec![b' '; bytes]).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            assert!(answer.contains("\"outcome\":\"not_applied\""), "{answer}");
        }
    }
    stack.end().await;
}

#[tokio::test]
async fn a_broker_that_finds_a_message_too_large_has_the_last_word() {
    let stack = Stack::new(quick()).await;
    stack
        .cluster
        .request_errors(RDKafkaApiKey::Produce, &[RespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    assert_eq!(stack.post_one().await.problem(), (413, "message_too_large", "not_applied"));
    assert_eq!(stack.post_one().await.status, 200);
    stack.end().await;
}

#[tokio::test]
async fn before_the_start_is_done_nothing_is_taken() {
    let stack = Stack::closed(quick()).await;
    let refused = stack.post_one().await;
    assert_eq!(refused.problem(), (503, "not_ready", "not_applied"));
    assert_eq!(refused.retry_after.as_deref(), Some("1"));
    stack.end().await;
}

#[tokio::test]
async fn what_never_reached_the_broker_is_certainly_not_applied() {
    let stack = Stack::new(quick()).await;
    stack.cluster.broker_down(BROKER).unwrap();
    let refused = stack.post_one().await;
    assert_eq!(refused.problem(), (503, "not_delivered", "not_applied"));
    assert_eq!(refused.retry_after.as_deref(), Some("1"));
    stack.cluster.broker_up(BROKER).unwrap();
    stack.end().await;
}

#[tokio::test]
async fn what_the_broker_did_not_confirm_in_time_is_unknown() {
    let stack = Stack::new(quick()).await;
    assert_eq!(stack.post_one().await.status, 200);
    stack.cluster.broker_round_trip_time(BROKER, Duration::from_secs(4)).unwrap();
    let unknown = stack.post_one().await;
    assert_eq!(unknown.problem(), (504, "delivery_unknown", "unknown"));
    assert_eq!(unknown.retry_after, None, "a client that goes by it would count twice");
    stack.cluster.broker_round_trip_time(BROKER, Duration::ZERO).unwrap();
    stack.end().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_keeps_its_place_until_the_log_reports() {
    let stack =
        Stack::new(config::Producer { max_in_flight: 1, ..config::Producer::default() }).await;
    assert_eq!(stack.post_one().await.status, 200);
    stack.cluster.broker_round_trip_time(BROKER, Duration::from_secs(2)).unwrap();
    let hung_up = tokio::time::timeout(Duration::from_millis(300), stack.post_one()).await;
    assert!(hung_up.is_err(), "{hung_up:?}");
    let refused = stack.post_one().await;
    assert_eq!(refused.problem(), (503, "overloaded", "not_applied"));
    assert_eq!(refused.retry_after.as_deref(), Some("1"));

    stack.cluster.broker_round_trip_time(BROKER, Duration::ZERO).unwrap();
    stack.gateway.idle().await.unwrap();
    let later = stack.post_one().await;
    assert!(
        later.position().ends_with(":3"),
        "the message of the client that hung up is there: {later:?}"
    );
    stack.end().await;
}

#[tokio::test]
async fn a_client_of_the_log_that_failed_for_good_is_replaced() {
    let stack = Stack::new(config::Producer::default()).await;
    assert_eq!(stack.post_one().await.status, 200);
    stack.cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[RespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER],
    );
    let failed = stack.post_one().await;
    assert_eq!(failed.problem(), (504, "delivery_unknown", "unknown"));
    let again = stack.post_one().await;
    assert_eq!(again.status, 200, "{again:?}");
    stack.end().await;
}

#[tokio::test]
async fn a_request_in_progress_is_answered_before_the_end() {
    let stack = Stack::new(config::Producer::default()).await;
    assert_eq!(stack.post_one().await.status, 200);
    stack.cluster.broker_round_trip_time(BROKER, Duration::from_secs(1)).unwrap();
    let shutdown = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stack.shutdown.cancel();
    };
    let (answered, ()) = tokio::join!(stack.post_one(), shutdown);
    assert!(answered.position().ends_with(":2"), "{answered:?}");
    assert!(stack.post().body("{}").send().await.unwrap_err().is_connect());
    stack.end().await;
}

#[tokio::test]
async fn a_body_that_is_arriving_at_the_end_is_waited_for() {
    let stack = Stack::new(config::Producer::default()).await;
    let mut client = stack.begin("content-length: 27", br#"{"namespace":"n","#).await;
    stack.arrived(17).await;
    stack.shutdown.cancel();
    assert!(stack.gateway.idle().now_or_never().is_none(), "the end does not come before it");
    client.write_all(br#""key":"k"}"#).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    stack.end().await;
}

#[tokio::test]
async fn half_a_request_does_not_hold_up_the_end() {
    let stack = Stack::new(quick()).await;
    let addr = stack.url.strip_prefix("http://").unwrap().strip_suffix("/v1/increments").unwrap();
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(b"POST /v1/increments HTTP/1.1\r\nhost:").await.unwrap();
    assert_eq!(stack.post_one().await.status, 200);
    stack.end().await;
}
