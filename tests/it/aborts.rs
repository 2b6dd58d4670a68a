//! Flushes that are aborted.

use crate::broker_proxy::BrokerProxy;
use crate::feeder::Feeder;
use crate::installation::Installation;
use crate::service::Service;

const BATCHES: &str = "tally_sink_batches_total";
/// Each of the producers in rotation has had its turn by then, with each partition.
const A_ROUND: f64 = 30.0;

/// A leader that is replaced may refuse what it has appended. If the transaction is aborted before
/// the batch is sent once more, librdkafka numbers the next one of that producer and partition the
/// same, and the broker takes that for a repetition: it says that the batch is in, and throws it
/// away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_abort_no_batch_passes_for_one_that_was_appended_before() {
    let tally = Installation::new("refused_but_appended").await;
    let broker = BrokerProxy::start(&tally.config.kafka).await;
    let bootstrap = broker.bootstrap();
    let mut aggregator =
        tally.start_with(Service::Aggregator, "a", &[("TALLY_KAFKA__BOOTSTRAP", &bootstrap)]);
    let mut sink = tally.start(Service::Sink, "a");
    let load = Feeder::start(&tally.source().await, 15);
    sink.counts_beyond(A_ROUND, BATCHES, "").await;

    broker.refuse().await;
    let stored = sink.metric(BATCHES, "").await.expect("a metric");
    sink.counts_beyond(stored + A_ROUND, BATCHES, "").await;
    tally.prove(&load.stop().await).await;
    aggregator.terminate().await;
    sink.terminate().await;
}
