//! A batch that never got into the log, and that librdkafka reports as delivered.
//!
//! Two batches of a producer are on their way to a partition in which the broker has nothing of it.
//! The first is refused, as where the leader was just replaced; the second is taken: the broker
//! does not know that it is the second one. librdkafka takes its acknowledgement for that of the
//! first too ([`rd_kafka_dr_implicit_ack`]), and reports both as delivered, the first without an
//! offset. Others have seen it: confluent-kafka-go, issue 921.
//!
//! [`rd_kafka_dr_implicit_ack`]:
//! https://github.com/confluentinc/librdkafka/blob/v2.12.1/src/rdkafka_broker.c

use serde_json::json;

use crate::broker_proxy::BrokerProxy;
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::rejects::noise;
use crate::service::Service;
use crate::topics;
use crate::wait::until;

const AT_MS: i64 = 1_780_000_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_not_accepted_whose_message_is_not_in_the_log() {
    let mut tally = Installation::bare("lost_batch");
    tally.allow("Kafka may or may not have a message");
    tally.configure(|config| config.kafka.partitions = 1);
    tally.tally(&["init"]).await.expect_code(0);
    let broker = BrokerProxy::start(&tally.config.kafka).await;
    let bootstrap = broker.bootstrap();
    let through = [("TALLY_KAFKA__BOOTSTRAP", bootstrap.as_str())];
    let mut gateway = tally.start_with(Service::Producer, "a", &through);
    gateway.ready().await;
    let events = ["first", "second"].map(|key| Event::new("lost", key, 1, AT_MS));
    let post = async |event: &Event| {
        let item = json!({ "namespace": "lost", "key": event.key, "at": AT_MS });
        let url = format!("{}/v1/increments", gateway.url());
        let request = gateway.http().post(url).header("idempotency-key", &event.key).json(&item);
        gateway.call(request).await
    };

    broker.lose_batch(&tally.config.kafka.increments);
    let (first, second) = tokio::join!(post(&events[0]), async {
        until("the first to be lost", async || {
            if broker.has_lost_batch() { Ok(()) } else { Err("nothing came") }
        })
        .await;
        post(&events[1]).await
    });
    assert_eq!(second.0, 200, "{second:?}");
    assert_eq!((first.0, &first.1["outcome"]), (504, &json!("unknown")), "{first:?}");
    let again = post(&events[0]).await;
    assert_eq!(again.0, 200, "{again:?}");

    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    let mut model = Model::default();
    model.add_all(&events);
    tally.prove(&model).await;
    gateway.terminate().await;
    for service in &mut services {
        service.terminate().await;
    }
}

/// The two are copies of messages that are rejected, each too long to share a batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_is_not_committed_that_is_not_in_the_log_as_a_whole() {
    let mut tally = Installation::bare("lost_part");
    tally.configure(|config| {
        config.kafka.partitions = 1;
        // Both are in one flush.
        config.aggregator.flush_interval_ms = 3_000;
    });
    tally.tally(&["init"]).await.expect_code(0);
    let broker = BrokerProxy::start(&tally.config.kafka).await;
    let bootstrap = broker.bootstrap();
    let (source, kafka) = (tally.source().await, tally.config.kafka.clone());
    for _ in 0..2 {
        source.send(0, Some(noise(900_000).as_bytes())).await;
    }
    let good = Event::new("lost", "good", 1, AT_MS);
    source.single(0, &good).await;

    broker.lose_batch(&kafka.rejected);
    let through = [("TALLY_KAFKA__BOOTSTRAP", bootstrap.as_str())];
    let mut services =
        [tally.start_with(Service::Aggregator, "a", &through), tally.start(Service::Sink, "a")];
    let mut model = Model::default();
    model.add(&good);
    tally.prove(&model).await;
    services[0].logs("no broker told its offset").await;
    assert_eq!(topics::messages(&kafka, &kafka.rejected).await.len(), 2);
    for service in &mut services {
        service.terminate().await;
    }
}
