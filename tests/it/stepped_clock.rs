use tally_wall_clock::WallClocks;

use crate::feeder::Feeder;
use crate::installation::Installation;
use crate::service::Service;

const BATCHES: &str = "tally_sink_batches_total";
/// Nanoseconds.
const HOUR: i64 = 3_600_000_000_000;

/// A wall clock is set back, by an hour or a day, and forth: nobody waits for the time to come
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_go_on_while_their_wall_clock_is_stepped() {
    let tally = Installation::new("stepped_clock").await;
    let folder = tempfile::tempdir().expect("a folder");
    let clocks = WallClocks::new(folder.path().to_owned()).expect("it is compiled");
    let clock = clocks.of("all").expect("a clock");
    let environment =
        clock.environment().map(|(name, path)| (name, path.to_str().expect("a path in UTF-8")));
    let start = |service| tally.start_with(service, "a", &environment);
    let mut aggregator = start(Service::Aggregator);
    let mut sink = start(Service::Sink);
    let load = Feeder::start(&tally.source().await, 29);
    sink.counts_beyond(0.0, BATCHES, "").await;
    for ahead in [-HOUR, 0, 2 * HOUR, -24 * HOUR, 0] {
        clock.set_ahead(ahead).expect("a step");
        let stored = sink.metric(BATCHES, "").await.expect("it answers");
        // What was on its way may come to its end in any case; what begins after it tells.
        sink.counts_beyond(stored + 5.0, BATCHES, "").await;
    }
    assert!(clock.reads().expect("a count") > 0);
    tally.prove(&load.stop().await).await;
    for service in [&mut aggregator, &mut sink] {
        service.terminate().await;
    }
}
