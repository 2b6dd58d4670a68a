//! Sums beyond 64 bits are exact everywhere.

use serde_json::json;

use crate::installation::Installation;
use crate::service::Service;

const AT_MS: i64 = 1_780_000_000_000;
const MOST: i64 = i64::MAX;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_beyond_64_bits_are_exact_in_reads_and_sql_and_proven() {
    let tally = Installation::new("wide").await;
    let mut producer = tally.start(Service::Producer, "a");
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    let mut reader = tally.start(Service::Reader, "a");
    producer.ready().await;
    reader.ready().await;
    let item = |delta: i64| json!({"namespace": "w", "key": "k", "delta": delta, "at": AT_MS});
    let post = async |body: serde_json::Value| {
        let url = format!("{}/v1/increments", producer.url());
        let (status, answer) = producer.call(producer.http().post(url).json(&body)).await;
        assert_eq!(status, 200, "{answer}");
        answer["position"].as_str().expect("a position").to_owned()
    };
    let read = async |after: &str| {
        let url = format!("{}/v1/counters/w/k?numbers=string&after={after}", reader.url());
        let (status, answer) = reader.call(reader.http().get(url)).await;
        assert_eq!(status, 200, "{answer}");
        answer["value"].as_str().expect("a string").parse::<i128>().expect("a number")
    };
    let mut total = 0;
    // Alone and together, in one flush and in several, up and down.
    for deltas in [
        vec![MOST],
        vec![10],
        vec![MOST, 1],
        vec![MOST, MOST, MOST],
        vec![1],
        vec![i64::MIN, -1],
        vec![i64::MIN; 6],
    ] {
        total += deltas.iter().map(|delta| i128::from(*delta)).sum::<i128>();
        let position = match deltas[..] {
            [one] => post(item(one)).await,
            _ => post(deltas.iter().map(|delta| item(*delta)).collect()).await,
        };
        assert_eq!(read(&position).await, total);
        tally.caught_up().await;
    }
    for _ in 0..2 {
        let stored: i128 = tally
            .store()
            .query("SELECT value FROM counters WHERE namespace = 'w' AND key = 'k'")
            .fetch_one()
            .await
            .expect("the view can be read");
        assert_eq!(stored, total);
        tally.verify().await.expect_code(0);
        tally.sql("OPTIMIZE TABLE counts FINAL").await;
    }
    reader.terminate().await;
    let mut reader = tally.start(Service::Reader, "b");
    reader.ready().await;
    let url = format!("{}/v1/counters/w/k", reader.url());
    let text = reader.http().get(url).send().await.expect("an answer").text().await;
    let text = text.expect("a body");
    assert!(text.contains(&format!(r#""value":{total},"events":16"#)), "{text}");
    for service in [&mut producer, &mut aggregator, &mut sink, &mut reader] {
        service.terminate().await;
    }
}
