//! What dashboards and autoscalers go by: the lag that Kafka tells of a group.

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::fetching::Damage;
use crate::installation::Installation;
use crate::outages::address;
use crate::ports::free_port;
use crate::proxy::{Mode, Proxy};
use crate::service::{Service, ServiceProcess};
use crate::topics;
use crate::wait::until;

/// A transaction's marker has an offset of its own, behind the last batch: a group that commits up
/// to that batch only never gets to the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_is_stored_no_group_lags() {
    let tally = Installation::new("lag").await;
    let _aggregator = tally.start(Service::Aggregator, "a");
    let _sink = tally.start(Service::Sink, "a");
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
}

/// The store is away for a while, then a partition of the log is damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_told_in_offsets_and_in_seconds() {
    const VICTIM: i32 = 1;
    let mut tally = Installation::new("waiting").await;
    tally.allow("ClickHouse may have stored the block or not; sending it again");
    tally.allow("the ledger in ClickHouse cannot be checked");
    tally.allow("the partition stops; the others go on");
    let store = Proxy::start(free_port(), address(&tally.config.store.url)).await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start_with(Service::Sink, "a", &[("TALLY_STORE__URL", &store.url(""))]);
    sink.ready().await;
    let (source, mut dice) = (tally.source().await, Dice(27));
    let mut feed = async || source.spread(&random_events(&mut dice, 60), 10).await;

    store.set(Mode::Refusing);
    feed().await;
    sink.counts_beyond(0.0, "tally_sink_lag", "").await;
    sink.counts_beyond(3.0, "tally_sink_lag_seconds", "").await;
    for lag in ["tally_aggregator_lag", "tally_aggregator_lag_seconds"] {
        comes_to_none(&aggregator, lag, "").await;
    }
    store.set(Mode::Open);
    for lag in ["tally_sink_lag", "tally_sink_lag_seconds"] {
        comes_to_none(&sink, lag, "").await;
    }

    aggregator.terminate().await;
    feed().await;
    let damage = Damage::new(&tally.config.kafka.increments, VICTIM);
    damage.flip();
    aggregator.start_again();
    let victim = format!("partition=\"{VICTIM}\"");
    aggregator.counts_beyond(0.0, "tally_aggregator_lag", &victim).await;
    aggregator.counts_beyond(3.0, "tally_aggregator_lag_seconds", &victim).await;
    comes_to_none(&aggregator, "tally_aggregator_lag", "partition=\"0\"").await;
    damage.flip();
    aggregator.terminate().await;
    sink.terminate().await;
}

async fn comes_to_none(service: &ServiceProcess, lag: &str, labels: &str) {
    until(&format!("{lag} to be 0"), async || match service.metric(lag, labels).await? {
        0.0 => Ok(()),
        lag => Err(format!("it is {lag}")),
    })
    .await;
}
