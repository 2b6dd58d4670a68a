//! What fetches messages: whichever it is, it gets all that was committed, and nothing else.

use std::time::Duration;

use rdkafka::producer::Producer;
use tally_service::config::{Compression, Fetch};

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::installation::Installation;
use crate::model::Model;
use crate::service::Kind;
use crate::source::Source;

const CALL: Duration = Duration::from_secs(20);

/// Every kind of batch that a broker may hold: each compression, many messages and one, of transactions that commit and that
/// do not, side by side with such that are of none.
async fn every_kind(tally: &Installation, seed: u64) -> Model {
    let mut model = Model::default();
    let mut dice = Dice(seed);
    let plain = tally.source().await;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let source = Source::with(&tally.config, &[("compression.type", codec), ("linger.ms", "20")]).await;
        let events = random_events(&mut dice, 600);
        source.spread(&events, 7).await;
        model.add_all(&events);

        let id = format!("{}-{codec}", tally.config.kafka.increments);
        let properties =
            [("compression.type", codec), ("linger.ms", "20"), ("transactional.id", id.as_str())];
        let source = Source::with(&tally.config, &properties).await;
        let open = source.producer().clone();
        tokio::task::spawn_blocking(move || open.init_transactions(CALL))
            .await
            .expect("no panic")
            .expect("the coordinator answers");
        for commits in [false, true, false, false, true] {
            source.producer().begin_transaction().expect("none is open");
            let events = random_events(&mut dice, 100);
            source.spread(&events, 3).await;
            let between = random_events(&mut dice, 10);
            plain.spread(&between, 2).await;
            model.add_all(&between);
            let open = source.producer().clone();
            let end =
                move || if commits { open.commit_transaction(CALL) } else { open.abort_transaction(CALL) };
            tokio::task::spawn_blocking(end).await.expect("no panic").expect("the transaction ends");
            if commits {
                model.add_all(&events);
            }
        }
    }
    // No partition ends with a marker: the ledger's position is after the last message.
    for partition in 0..plain.partitions() {
        let events = random_events(&mut dice, 1);
        plain.batch(partition, &events).await;
        model.add_all(&events);
    }
    model
}

async fn counts_every_kind(name: &str, fetch: Fetch, compression: Compression, seed: u64) {
    let mut tally = Installation::new(name).await;
    tally.configure(|config| {
        config.aggregator.fetch = fetch;
        // To a store on this machine blocks go as they are, unless told.
        config.store.compression = compression;
    });
    // Half of it is there before the aggregator is, half comes while it runs.
    let mut model = every_kind(&tally, seed).await;
    let mut aggregator = tally.start(Kind::Aggregator, "a");
    let mut sink = tally.start(Kind::Sink, "a");
    aggregator.ready().await;
    model.merge(every_kind(&tally, seed + 1).await);
    tally.prove(&model).await;
    for service in [&mut aggregator, &mut sink] {
        service.ready().await;
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn straight_from_the_brokers_every_kind_of_batch_is_counted() {
    counts_every_kind("direct", Fetch::Auto, Compression::Auto, 81).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_librdkafka_every_kind_of_batch_is_counted() {
    counts_every_kind("librdkafka", Fetch::Librdkafka, Compression::Lz4, 83).await;
}
