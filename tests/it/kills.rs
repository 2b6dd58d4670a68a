//! Members that end at any moment: killed, or asked to.

use crate::dice::Dice;
use crate::feeder::Feeder;
use crate::installation::Installation;
use crate::service::{Service, ServiceProcess};

const FLUSHES: &str = "tally_aggregator_flushes_total";
const BATCHES: &str = "tally_sink_batches_total";
const ROUNDS: usize = 5;
const MEMBERS: [&str; 2] = ["a", "b"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Kill,
    Terminate,
}

impl Ending {
    async fn of(self, service: &mut ServiceProcess) {
        match self {
            Ending::Kill => service.kill(),
            Ending::Terminate => service.terminate().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_drains_and_goes_on_where_it_was() {
    let tally = Installation::new("restart").await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    let load = Feeder::start(&tally.source().await, 1);
    aggregator.counts_beyond(2.0, FLUSHES, "committed").await;
    sink.counts_beyond(2.0, BATCHES, "").await;
    aggregator.terminate().await;
    sink.terminate().await;
    load.goes_on().await;

    aggregator.start_again();
    sink.start_again();
    aggregator.counts_beyond(2.0, FLUSHES, "committed").await;
    sink.counts_beyond(2.0, BATCHES, "").await;
    tally.prove(&load.stop().await).await;
    aggregator.terminate().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_stay_exact_whichever_moment_a_member_is_killed_at() {
    let tally = Installation::new("killed").await;
    end_members_at_any_moment(&tally, Ending::Kill, 20_261).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_stay_exact_whichever_moment_a_member_is_asked_to_stop_at() {
    let tally = Installation::new("stopped").await;
    end_members_at_any_moment(&tally, Ending::Terminate, 20_262).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stays_dead_is_taken_over_with_what_it_left_open() {
    let tally = Installation::new("taken_over").await;
    let mut aggregators = MEMBERS.map(|member| tally.start(Service::Aggregator, member));
    let mut sinks = MEMBERS.map(|member| tally.start(Service::Sink, member));
    for service in aggregators.iter_mut().chain(&mut sinks) {
        service.ready().await;
    }
    let load = Feeder::start(&tally.source().await, 3);
    for (service, metric) in
        aggregators.iter().zip([FLUSHES; 2]).chain(sinks.iter().zip([BATCHES; 2]))
    {
        service.counts_beyond(1.0, metric, "").await;
    }
    aggregators[0].kill();
    sinks[0].kill();
    load.goes_on().await;
    tally.prove(&load.stop().await).await;
    aggregators[1].terminate().await;
    sinks[1].terminate().await;
}

/// Each round ends one of two aggregators and one of two sinks, a few flushes after it began to
/// work, or before.
async fn end_members_at_any_moment(tally: &Installation, end: Ending, seed: u64) {
    let mut dice = Dice(seed);
    let mut aggregators = MEMBERS.map(|member| tally.start(Service::Aggregator, member));
    let mut sinks = MEMBERS.map(|member| tally.start(Service::Sink, member));
    for service in aggregators.iter_mut().chain(&mut sinks) {
        service.ready().await;
    }
    let load = Feeder::start(&tally.source().await, seed);
    for round in 0..ROUNDS {
        let (aggregator, sink) = (&mut aggregators[round % 2], &mut sinks[(round + 1) % 2]);
        aggregator.counts_beyond(dice.roll(6) as f64, FLUSHES, "committed").await;
        sink.counts_beyond(dice.roll(6) as f64, BATCHES, "").await;
        end.of(aggregator).await;
        end.of(sink).await;
        load.goes_on().await;
        aggregator.start_again();
        sink.start_again();
        if round == ROUNDS / 2 {
            // Once more, while it still comes up.
            aggregator.kill();
            aggregator.start_again();
        }
        aggregator.ready().await;
        sink.ready().await;
    }
    tally.prove(&load.stop().await).await;
    for service in aggregators.iter_mut().chain(&mut sinks) {
        service.terminate().await;
    }
}
