use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};
use tally_platform::config::Config;
use tally_platform::store;

use crate::broker_proxy::{BrokerProxy, Step};
use crate::dice::Dice;
use crate::feeder::{Feeder, random_events};
use crate::installation::Installation;
use crate::model::Model;
use crate::service::Service;
use crate::topics;
use crate::topics_change::add_partitions;
use crate::wait::{PATIENCE, until};

/// Two installations on one host, with topics of their own and everything else as it is by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn installations_with_the_same_groups_and_instances_do_not_fence_each_other() {
    let mut both = [Installation::new("one_group").await, Installation::new("one_group").await];
    let groups = (both[0].config.aggregator.group.clone(), both[0].config.sink.group.clone());
    both[1].configure(|config| (config.aggregator.group, config.sink.group) = groups);
    let mut services = Vec::new();
    for tally in &both {
        services.extend([Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a")));
    }
    for service in &mut services {
        service.ready().await;
    }
    for round in 0..3 {
        for tally in &both {
            let events = random_events(&mut Dice(round), 200);
            tally.source().await.spread(&events, 10).await;
            let mut model = Model::default();
            (0..=round).for_each(|round| model.add_all(&random_events(&mut Dice(round), 200)));
            tally.prove(&model).await;
        }
    }
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_move_to_a_second_member_and_back_under_load() {
    let tally = Installation::new("rebalance").await;
    let (aggregated, stored) = ("tally_aggregator_increments_total", "tally_sink_batches_total");
    let mut first = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "first"));
    for service in &mut first {
        service.ready().await;
    }
    let load = Feeder::start(&tally.source().await, 4);
    first[0].counts_beyond(0.0, aggregated, "").await;
    first[1].counts_beyond(0.0, stored, "").await;

    let mut second = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "second"));
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
    let tally = Installation::new("workers").await;
    let mut aggregator =
        tally.start_with(Service::Aggregator, "a", &[("TALLY_AGGREGATOR__WORKERS", "2")]);
    let mut sink = tally.start(Service::Sink, "a");
    // Each of them has to be assigned something.
    aggregator.ready().await;
    let load = Feeder::start(&tally.source().await, 5);
    aggregator.counts_beyond(5.0, "tally_aggregator_flushes_total", "committed").await;
    tally.prove(&load.stop().await).await;
    aggregator.terminate().await;
    sink.terminate().await;
}

/// A transaction with a partition's next offset in it that nobody ends, as a member leaves it that
/// dies in the middle of one.
fn leave_open(config: &Config, partition: i32, next: i64) -> BaseProducer {
    let producer: BaseProducer =
        tally_kafka::transactional_producer(&config.kafka.cluster(), "dead", &config.kafka.deltas)
            // Longer than the test may take.
            .set("transaction.timeout.ms", "120000")
            .create()
            .expect("a producer is made");
    let group: BaseConsumer =
        tally_kafka::consumer(&config.kafka.cluster(), "dead", &config.aggregator.group)
            .create()
            .expect("a consumer is made");
    let mut offsets = TopicPartitionList::new();
    let offset = Offset::Offset(next);
    offsets
        .add_partition_offset(&config.kafka.increments, partition, offset)
        .expect("an offset is valid");
    producer.init_transactions(PATIENCE).expect("the coordinator answers");
    producer.begin_transaction().expect("no transaction is open");
    let group = group.group_metadata().expect("the consumer has a group");
    producer
        .send_offsets_to_transaction(&offsets, &group, PATIENCE)
        .expect("the group takes the offset");
    producer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_members_open_transaction_holds_up_its_own_partition_alone() {
    let mut tally = Installation::new("open_transaction").await;
    tally.allow("partitions wait for their positions");
    let kafka = tally.config.kafka.clone();
    let config = tally.config.clone();
    let dead =
        tokio::task::spawn_blocking(move || leave_open(&config, 2, 0)).await.expect("no panic");
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    let source = tally.source().await;
    let mut model = Model::default();
    let events = random_events(&mut Dice(91), 300);
    source.spread(&events, 10).await;
    model.add_all(&events);
    let ends = topics::ends(&kafka, &kafka.increments).await;
    until("the other partitions to be stored", async || {
        let ledgers = store::ledgers(tally.store()).await.map_err(|error| error.to_string())?;
        let at = |partition| ledgers.get(&partition).map_or(0, |ledger| ledger.increments.high);
        let found = [0, 1, 2].map(at);
        if found[..2] == ends[..2] {
            Ok(())
        } else {
            Err(format!("at {found:?}, to reach {ends:?}"))
        }
    })
    .await;
    let ledgers = store::ledgers(tally.store()).await.expect("the store answers");
    assert!(
        !ledgers.contains_key(&2),
        "partition 2 was read while a transaction could still change its offset"
    );
    // It was open until now, or this would fail.
    let aborted = tokio::task::spawn_blocking(move || dead.abort_transaction(PATIENCE));
    aborted.await.expect("no panic").expect("the transaction was open");
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
}

/// librdkafka joins its group again at once when partitions are added, also while some are to be
/// let go, and as if they had been: the group gives them to another member, while the one that
/// still has them is a member as well, and may flush. After that librdkafka passes over each later
/// rebalance, so that one must begin anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_while_others_move_give_none_two_owners() {
    let mut tally = Installation::new("two_owners").await;
    tally.configure(|config| {
        let (name, soon) = ("topic.metadata.refresh.interval.ms", "300");
        config.kafka.properties.insert(name.to_owned(), soon.to_owned());
    });
    tally.allow("after which its Kafka client takes part in no rebalance any more");
    tally.allow("Kafka does not serve the partition");
    let proxy = BrokerProxy::start(&tally.config.kafka).await;
    let bootstrap = proxy.bootstrap();
    let mut first =
        tally.start_with(Service::Aggregator, "first", &[("TALLY_KAFKA__BOOTSTRAP", &bootstrap)]);
    let mut sink = tally.start(Service::Sink, "a");
    let load = Feeder::start(&tally.source().await, 21);
    sink.counts_beyond(3.0, "tally_sink_batches_total", "").await;

    // It waits for this flush before it lets a partition go, and has more to flush then.
    proxy.hold(Some(Step::End));
    let mut second = tally.start(Service::Aggregator, "second");
    second.logs("assignment changed").await;
    let count = usize::try_from(tally.config.kafka.partitions + 1).expect("a few");
    for topic in [&tally.config.kafka.deltas, &tally.config.kafka.increments] {
        add_partitions(&tally, topic, count).await;
    }
    let state = "tally_aggregator_partition_state";
    until("the second member to be given a partition", async || {
        match second.series(state, "").await {
            Ok(states) if !states.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    proxy.hold(Some(Step::Offsets));
    let sees_it = second.logs("reading on");
    let waited = tokio::time::timeout(Duration::from_secs(5), sees_it).await;
    println!("the second member reads the partition beside the first one: {}", waited.is_ok());
    proxy.hold(None);
    load.goes_on().await;

    // The group gives a third member something only if all others take part.
    let mut third = tally.start(Service::Aggregator, "third");
    until("the third member to be given a partition", async || {
        first.start_again_if_ended();
        second.start_again_if_ended();
        match third.series(state, "").await {
            Ok(states) if !states.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    load.goes_on().await;
    tally.configure(|config| config.kafka.partitions += 1);
    tally.prove(&load.stop().await).await;
    for service in [&mut first, &mut second, &mut third, &mut sink] {
        service.start_again_if_ended();
        service.ready().await;
        service.terminate().await;
    }
}
