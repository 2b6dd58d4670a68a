//! Somebody else's consumer in a group of Tally's: the partitions that the group gives it are dealt
//! with by nobody, which must not go unseen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::installation::Installation;
use crate::model::Model;
use crate::service::{Service, ServiceProcess};
use crate::wait::until;

/// A consumer that reads what its group gives it, as a console does.
struct Stranger {
    stop: Arc<AtomicBool>,
    polling: JoinHandle<()>,
}

impl Stranger {
    fn join(tally: &Installation, group: &str, topic: &str) -> Stranger {
        let cluster = tally.config.kafka.cluster();
        let consumer: BaseConsumer = tally_kafka::consumer(&cluster, "console-consumer", group)
            .create()
            .expect("a consumer is made");
        consumer.subscribe(&[topic]).expect("it subscribes");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let polling = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                consumer.poll(Duration::from_millis(50));
            }
        });
        Stranger { stop, polling }
    }

    fn leave(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.polling.join().expect("it does not panic");
    }
}

async fn strangers(service: &ServiceProcess, metric: &str, want: f64) {
    until(&format!("{metric} to be {want}"), async || match service.metric(metric, "").await? {
        value if value == want => Ok(()),
        value => Err(format!("it is {value}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_in_the_group_is_named_until_it_leaves() {
    let mut tally = Installation::new("strangers").await;
    tally.allow("a consumer that is not Tally's is in the group");
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let config = tally.config.clone();
    let groups = [
        (&config.aggregator.group, &config.kafka.increments, "tally_aggregator_strangers"),
        (&config.sink.group, &config.kafka.deltas, "tally_sink_strangers"),
    ];
    let joined = groups.map(|(group, topic, _)| Stranger::join(&tally, group, topic));
    for (service, (group, topic, metric)) in services.iter().zip(groups) {
        until("readiness to name the stranger", async || match service.readiness().await {
            Err(why)
                if why
                    .contains(&format!("in the consumer group {group}, console-consumer at "))
                    && why.contains("has partitions [")
                    && why.contains(topic) =>
            {
                Ok(())
            }
            answer => Err(format!("{answer:?}")),
        })
        .await;
        strangers(service, metric, 1.0).await;
        service.logs("a consumer that is not Tally's is in the group").await;
    }

    joined.into_iter().for_each(Stranger::leave);
    for (service, (_, _, metric)) in services.iter_mut().zip(groups) {
        service.ready().await;
        strangers(service, metric, 0.0).await;
    }
    let (source, mut model) = (tally.source().await, Model::default());
    let events = random_events(&mut Dice(12), 100);
    source.spread(&events, 10).await;
    model.add_all(&events);
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
}
