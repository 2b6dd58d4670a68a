//! What dashboards and autoscalers go by: the lag that Kafka tells of a group.

use crate::feeder::random_events;
use crate::installation::Installation;
use crate::service::Service;
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
    source.spread(&random_events(&mut crate::dice::Dice(26), 300), 10).await;
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
