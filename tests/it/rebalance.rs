use crate::feeder::Feeder;
use crate::installation::{Installation, OVERTAKEN};
use crate::service::Kind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_move_to_a_second_member_and_back_under_load() {
    let mut tally = Installation::new("rebalance").await;
    tally.allow(OVERTAKEN);
    let (aggregated, stored) = ("tally_aggregator_increments_total", "tally_sink_batches_total");
    let mut first = [Kind::Aggregator, Kind::Sink].map(|kind| tally.start(kind, "first"));
    for service in &mut first {
        service.ready().await;
    }
    let load = Feeder::start(&tally.source().await, 4);
    first[0].counts_beyond(0.0, aggregated, "").await;
    first[1].counts_beyond(0.0, stored, "").await;

    let mut second = [Kind::Aggregator, Kind::Sink].map(|kind| tally.start(kind, "second"));
    second[0].counts_beyond(0.0, aggregated, "").await;
    second[1].counts_beyond(0.0, stored, "").await;
    let kept = [
        first[0].metric(aggregated, "").await.expect("a metric"),
        first[1].metric(stored, "").await.expect("a metric"),
    ];
    first[0].counts_beyond(kept[0], aggregated, "").await;
    first[1].counts_beyond(kept[1], stored, "").await;

    for service in &mut second {
        service.terminate().await;
    }
    load.goes_on().await;
    tally.prove(&load.stop().await).await;
    for service in &mut first {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_of_one_process_share_the_partitions() {
    let mut tally = Installation::new("workers").await;
    tally.allow(OVERTAKEN);
    let mut aggregator = tally.start_with(Kind::Aggregator, "a", &[("TALLY_AGGREGATOR__WORKERS", "2")]);
    let mut sink = tally.start(Kind::Sink, "a");
    // Each of them has to be assigned something.
    aggregator.ready().await;
    let load = Feeder::start(&tally.source().await, 5);
    aggregator.counts_beyond(5.0, "tally_aggregator_flushes_total", "committed").await;
    tally.prove(&load.stop().await).await;
    aggregator.terminate().await;
    sink.terminate().await;
}
