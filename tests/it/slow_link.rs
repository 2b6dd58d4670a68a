//! A link to Kafka that is far slower than what is to be carried: the counts come late, and whole.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::Message;
use tokio::time::sleep;

use crate::broker_proxy::{BrokerProxy, Link, Step};
use crate::dice::Dice;
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::service::Service;
use crate::topics;

/// Bytes a second. Much of what a flush or a fetch may hold takes longer than ten seconds.
const RATE: usize = 100_000;
/// What all of them take on the way is more than [`RATE`] carries in ten seconds: names of 200
/// random bytes hardly compress.
const EVENTS: usize = 8_000;

/// Increments of as many counters.
fn long_names(seed: u64, count: usize) -> Vec<Event> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut dice = Dice(seed);
    let mut name = || (0..200).map(|_| char::from(LETTERS[dice.roll(64)])).collect::<String>();
    (0..count).map(|_| Event::new("slow", &name(), 1, 1_780_000_000_000)).collect()
}

async fn counts_over(name: &str, link: Link, told: &[&str]) {
    let mut tally = Installation::new(name).await;
    tally.allow("connection to the Kafka broker lost");
    // The first flush is to hold all that is there.
    tally.configure(|config| config.aggregator.flush_interval_ms = 2_000);
    let events = long_names(91, EVENTS);
    tally.source().await.spread(&events, 20).await;
    let mut model = Model::default();
    model.add_all(&events);

    let broker = BrokerProxy::start_on(link, &tally.config.kafka).await;
    let bootstrap = broker.bootstrap();
    let mut aggregator =
        tally.start_with(Service::Aggregator, "a", &[("TALLY_KAFKA__BOOTSTRAP", &bootstrap)]);
    let mut sink = tally.start(Service::Sink, "a");
    tally.prove(&model).await;
    for text in told {
        aggregator.logs(text).await;
    }
    sink.terminate().await;
    aggregator.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_does_not_get_through_in_time_is_tried_with_less() {
    let told = ["Kafka has not answered a flush", "the next ones hold fewer bytes"];
    counts_over("slow_requests", Link::SlowRequests(RATE), &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_whose_answer_comes_slowly_is_taken_whole() {
    counts_over("slow_fetches", Link::SlowFetches(RATE), &[]).await;
}

/// Flushes are small once one did not get through in time. What is fetched of a partition at a time
/// then takes many of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_does_not_wait_until_all_that_was_fetched_of_another_is_flushed() {
    let mut tally = Installation::new("turns").await;
    tally.allow("Kafka does not serve the partition");
    let broker = BrokerProxy::start(&tally.config.kafka).await;
    broker.hold(Some(Step::End));
    let bootstrap = broker.bootstrap();
    let mut aggregator =
        tally.start_with(Service::Aggregator, "a", &[("TALLY_KAFKA__BOOTSTRAP", &bootstrap)]);
    let mut sink = tally.start(Service::Sink, "a");
    let (source, mut model) = (tally.source().await, Model::default());
    let first = Event::new("slow", "first", 1, 1_780_000_000_000);
    source.single(0, &first).await;
    aggregator.logs("Kafka has not answered a flush").await;
    // Some ten flushes of each partition, which grow again.
    let events = long_names(92, 8_000);
    for (batch, partition) in events.chunks(20).zip([0, 2].into_iter().cycle()) {
        source.batch(partition, batch).await;
    }
    aggregator.logs("the next ones hold fewer bytes").await;
    // The first of the small flushes is held until both partitions have been fetched again.
    sleep(Duration::from_secs(4)).await;
    broker.hold(None);
    model.add(&first);
    model.add_all(&events);
    tally.prove(&model).await;

    let mut flushed = BTreeMap::<i32, Vec<i64>>::new();
    for batch in topics::messages(&tally.config.kafka, &tally.config.kafka.deltas).await {
        let at = batch.timestamp().to_millis().expect("a batch has a time");
        flushed.entry(batch.partition()).or_default().push(at);
    }
    for (one, other) in [(0, 2), (2, 0)] {
        let before = flushed[&one].iter().filter(|at| **at < flushed[&other][0]).count();
        assert!(before <= 3, "{flushed:?}");
    }
    sink.terminate().await;
    aggregator.terminate().await;
}
