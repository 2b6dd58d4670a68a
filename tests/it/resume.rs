//! What an aggregator makes of what was committed before it: it remembers the same ids, by the same
//! rules, or does not count.

use tally_platform::store;
use tally_schemas::{Increment, encode, wire};

use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::odd_registry::{Odd, OddRegistry};
use crate::service::Service;
use crate::source::Source;

const AT_MS: i64 = 1_780_000_000_000;

fn event(key: &str) -> Event {
    Event::new("resume", key, 1, AT_MS)
}

async fn send(source: &Source, event: &Event, id: &str) {
    let mut payload = wire::prefix(source.increment_schema).to_vec();
    encode::increment(&mut payload, &Increment { id: Some(id), ..event.increment() });
    source.send(0, Some(&payload)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_a_lagging_registry_hides_are_waited_for() {
    let mut tally = Installation::new("lagging").await;
    tally.allow("the partition waits for the schema registry");
    let source = tally.source().await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    let mut model = Model::default();
    send(&source, &event("first"), "first").await;
    model.add(&event("first"));
    tally.prove(&model).await;
    aggregator.terminate().await;

    let registry = OddRegistry::start(&tally.config.registry.url).await;
    registry.answer(source.increment_schema, Odd::Unknown);
    tally.configure(|config| config.registry.url.clone_from(&registry.url));
    aggregator.start_again();
    send(&source, &event("first"), "first").await;
    send(&source, &event("second"), "second").await;
    model.add(&event("second"));
    aggregator.logs("the ids of a message cannot be restored, since its schema is gone").await;
    registry.answer_all();
    tally.prove(&model).await;
    let ledger = store::ledgers(tally.store()).await.expect("the ledger can be read")[&0];
    assert_eq!((ledger.counted, ledger.duplicate, ledger.rejected), (2, 1, 0));
    aggregator.terminate().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregator_by_other_rules_than_those_before_it_does_not_count() {
    let mut tally = Installation::new("other_rules").await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    let mut model = Model::default();
    tally.source().await.single(0, &event("first")).await;
    model.add(&event("first"));
    tally.prove(&model).await;
    aggregator.terminate().await;

    tally.allow("it was counted by other rules");
    tally.configure(|config| config.duplicates.horizon_offsets = 7);
    aggregator.start_again();
    assert_ne!(aggregator.ended().await.code(), Some(0));
    let said = "ids_within=counter min_event_seconds=946684800, but the configuration says";
    aggregator.logs(said).await;
    aggregator.logs("horizon_offsets=7 max_ids=1000000").await;

    tally.configure(|config| config.duplicates.horizon_offsets = 1_000_000);
    aggregator.start_again();
    tally.source().await.single(0, &event("second")).await;
    model.add(&event("second"));
    tally.prove(&model).await;
    aggregator.terminate().await;
    sink.terminate().await;
}
