//! What a reader holds of counters whose names are as long as names may be, most of which nobody
//! ever counted.

use serde_json::{Value, json};

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::reading::{log_end, read, read_all};
use crate::service::{Service, ServiceProcess};

const AT_MS: i64 = 1_780_000_000_000;
const MIB: usize = 1 << 20;
const NAME_BYTES: usize = 4096;
const CACHED_BYTES: usize = 4 * MIB;
/// What docs/capacity.md states: counters in memory, batches that are not stored, queries and
/// answers, names that wait for ClickHouse, and some 60 MiB of its own.
const MOST_BYTES: u64 = (4 + 16 + 64 + 64 + 60) << 20;
/// Queries of counters that nobody counted, twelve times what may be in memory, and how many each
/// is of.
const QUERIES: usize = 12;
const COUNTERS: usize = 1_000;
const AT_ONCE: usize = 4;

fn long_name(number: usize) -> String {
    format!("{number:0>NAME_BYTES$}")
}

/// Asks for counters that nobody counted.
async fn ask_for_unknown(reader: &ServiceProcess, query: usize) {
    let name = |number| json!({ "namespace": "nobody", "key": long_name(number) });
    let counters: Vec<Value> = (query * COUNTERS..).take(COUNTERS).map(name).collect();
    let url = format!("{}/v1/counters/query", reader.url());
    let request = reader.http().post(url).json(&json!({ "counters": counters }));
    let (status, answer) = reader.call(request).await;
    assert_eq!(status, 200, "{answer:.200}");
    let answers = answer["counters"].as_array().expect("an array of counters");
    assert!(answers.iter().all(|answer| answer["value"] == 0), "nobody counted them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_names_that_nobody_counted_take_bounded_memory_and_leave_hot_counters_there() {
    let mut tally = Installation::new("reader_memory").await;
    tally.configure(|config| {
        config.reader.cached_bytes = CACHED_BYTES;
        config.reader.unstored_bytes = 16 * MIB;
    });
    let source = tally.source().await;
    let mut model = Model::default();
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    let mut reader = tally.start(Service::Reader, "a");
    reader.ready().await;
    // More of them than may be in memory.
    let long = |number| Event::new(&long_name(number), &long_name(number), 1, AT_MS);
    let mut events: Vec<Event> = (0..4 * CACHED_BYTES / (2 * NAME_BYTES)).map(long).collect();
    events.extend(random_events(&mut Dice(77), 500));
    source.spread(&events, 50).await;
    model.add_all(&events);
    let end = log_end(&tally).await;
    let expected: Vec<_> = model.counters().into_values().collect();
    assert_eq!(read_all(&reader, &model, &end).await, expected);

    let hot = &events.last().expect("there are some").clone();
    let is_hot = async |reader: &ServiceProcess| {
        let misses = reader.metric("tally_reader_misses_total", "").await.expect("a metric");
        read(reader, &hot.namespace, &hot.key, "").await;
        reader.metric("tally_reader_misses_total", "").await == Ok(misses)
    };
    is_hot(&reader).await;
    for queries in (0..QUERIES).collect::<Vec<_>>().chunks(AT_ONCE) {
        let asked = queries.iter().map(|query| ask_for_unknown(&reader, *query));
        futures_util::future::join_all(asked).await;
        assert!(is_hot(&reader).await, "counters that nobody counted pushed a hot one out");
    }
    let cached = reader.metric("tally_reader_cached_bytes", "").await.expect("a metric");
    assert!(cached <= CACHED_BYTES as f64, "{cached} bytes of counters");
    let bytes = reader.peak_memory_bytes();
    assert!(bytes < MOST_BYTES, "the reader took {bytes} bytes");
    tally.prove(&model).await;
    reader.terminate().await;
    for service in &mut services {
        service.terminate().await;
    }
}
