//! What dashboards and autoscalers go by: the lag that Kafka tells of a group, and the lag and the
//! state of each partition that the services tell.

use std::time::Duration;

use rdkafka::producer::Producer;

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::fetching::Damage;
use crate::installation::Installation;
use crate::outages::address;
use crate::ports::free_port;
use crate::proxy::{Mode, Proxy};
use crate::service::{Service, ServiceProcess};
use crate::source::Source;
use crate::topics;
use crate::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// A transaction's marker has an offset of its own, behind the last message or batch: who counts
/// messages only never gets to the end. Where clients append in transactions, the aggregators'
/// group is such a one, but not their metric.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_is_stored_nobody_lags() {
    let mut tally = Installation::new("lag").await;
    tally.allow("the counts are not proven");
    tally.configure(|config| config.reconciler.watch_interval_ms = 300);
    let services = ["aggregator", "sink", "reader", "reconciler"];
    let kinds = [Service::Aggregator, Service::Sink, Service::Reader, Service::Watch];
    let running = kinds.map(|kind| tally.start(kind, "a"));
    let source = tally.source().await;
    source.spread(&random_events(&mut Dice(26), 300), 10).await;
    tally.caught_up().await;
    let config = &tally.config;
    for (group, topic) in [
        (&config.aggregator.group, &config.kafka.increments),
        (&config.sink.group, &config.kafka.deltas),
    ] {
        until(&format!("{group} to have no lag"), async || {
            let ends = topics::ends(&config.kafka, topic).await;
            let committed = topics::committed(&config.kafka, group, topic).await;
            if committed == ends {
                Ok(())
            } else {
                Err(format!("{topic} ends at {ends:?}, and {committed:?} is committed"))
            }
        })
        .await;
    }
    leave_markers(&tally).await;
    for (service, name) in running.iter().zip(services) {
        for metric in ["lag", "lag_seconds"] {
            comes_to(0.0, service, &format!("tally_{name}_{metric}"), "").await;
        }
    }
}

/// Ends every partition of `increments` with the marker of a transaction that was aborted.
async fn leave_markers(tally: &Installation) {
    let id = format!("{}-markers", tally.config.kafka.increments);
    let source = Source::with(&tally.config, &[("transactional.id", id.as_str())]).await;
    let open = source.producer().clone();
    let init = move || open.init_transactions(PATIENCE).expect("the coordinator answers");
    tokio::task::spawn_blocking(init).await.expect("no panic");
    source.producer().begin_transaction().expect("none is open");
    for partition in 0..source.partitions() {
        source.batch(partition, &random_events(&mut Dice(1), 1)).await;
    }
    let open = source.producer().clone();
    let abort = move || open.abort_transaction(PATIENCE).expect("the transaction ends");
    tokio::task::spawn_blocking(abort).await.expect("no panic");
}

/// The store is away for a while, then a partition of the log is damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_told_in_offsets_and_in_seconds() {
    const VICTIM: i32 = 1;
    let mut tally = Installation::new("waiting").await;
    tally.allow("ClickHouse may have stored the block or not; sending it again");
    tally.allow("the ledger in ClickHouse cannot be checked");
    tally.allow("the partition stops; the others go on");
    tally.allow("the counts are not proven");
    tally.configure(|config| config.reconciler.watch_interval_ms = 300);
    let store = Proxy::start(free_port(), address(&tally.config.store.url)).await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start_with(Service::Sink, "a", &[("TALLY_STORE__URL", &store.url(""))]);
    let mut watch = tally.start(Service::Watch, "a");
    let partitions = f64::from(tally.config.kafka.partitions);
    comes_to_sum(partitions, &sink, "tally_sink_partition_state", "state=\"storing\"").await;
    let (source, mut dice) = (tally.source().await, Dice(27));
    let mut feed = async || source.spread(&random_events(&mut dice, 60), 10).await;

    feed().await;
    comes_to(0.0, &watch, "tally_reconciler_lag", "").await;
    store.set(Mode::Refusing);
    feed().await;
    for (service, name) in [(&sink, "sink"), (&watch, "reconciler")] {
        service.counts_beyond(0.0, &format!("tally_{name}_lag"), "").await;
        service.counts_beyond(3.0, &format!("tally_{name}_lag_seconds"), "").await;
    }
    for lag in ["tally_aggregator_lag", "tally_aggregator_lag_seconds"] {
        comes_to(0.0, &aggregator, lag, "").await;
    }
    store.set(Mode::Open);
    for (service, name) in [(&sink, "sink"), (&watch, "reconciler")] {
        comes_to(0.0, service, &format!("tally_{name}_lag"), "").await;
        comes_to(0.0, service, &format!("tally_{name}_lag_seconds"), "").await;
    }
    let agree = "state=\"agrees\"";
    comes_to_sum(partitions, &watch, "tally_reconciler_partition_state", agree).await;

    aggregator.terminate().await;
    feed().await;
    let mut damage = Damage::new(&tally.config.kafka.increments, VICTIM);
    damage.flip();
    aggregator.start_again();
    let victim = format!("partition=\"{VICTIM}\"");
    aggregator.counts_beyond(0.0, "tally_aggregator_lag", &victim).await;
    aggregator.counts_beyond(3.0, "tally_aggregator_lag_seconds", &victim).await;
    comes_to(0.0, &aggregator, "tally_aggregator_lag", "partition=\"0\"").await;
    let state = "tally_aggregator_partition_state";
    let stopped = format!("{victim},state=\"stopped\"");
    assert_eq!(aggregator.metric(state, &stopped).await, Ok(1.0));
    assert_eq!(aggregator.metric(state, "state=\"counting\"").await, Ok(partitions - 1.0));
    assert_eq!(aggregator.metric(state, "").await, Ok(partitions), "each is in one state");
    damage.flip();
    for service in [&mut aggregator, &mut sink, &mut watch] {
        service.terminate().await;
    }
}

/// Waits until there are series of the metric with these labels, and each is at `want`.
pub(crate) async fn comes_to(want: f64, service: &ServiceProcess, name: &str, labels: &str) {
    until(&format!("{name} to be {want}"), async || {
        let series = service.series(name, labels).await?;
        let is_there = !series.is_empty() && series.iter().all(|value| *value == want);
        if is_there { Ok(()) } else { Err(format!("{series:?}")) }
    })
    .await;
}

async fn comes_to_sum(want: f64, service: &ServiceProcess, name: &str, labels: &str) {
    until(&format!("{name} to come to {want}"), async || {
        let sum = service.metric(name, labels).await?;
        if sum == want { Ok(()) } else { Err(format!("it is {sum}")) }
    })
    .await;
}
