//! A client that loses every broker.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::broker_proxy::BrokerProxy;
use crate::installation::Installation;
use crate::service::Service;
use crate::wait::until;

/// A broker that has just started may know no other yet, nor itself; whoever believes that has
/// nobody left to ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_gets_over_answers_that_name_no_broker() {
    let mut tally = Installation::new("no_brokers").await;
    tally.allow("Kafka does not answer; the gateway is not ready until it does");
    tally.allow("Kafka did not take a message");
    tally.configure(|config| {
        let (name, soon) = ("topic.metadata.refresh.interval.ms", "500");
        config.kafka.properties.insert(name.to_owned(), soon.to_owned());
        config.producer.delivery_timeout_ms = 3_000;
    });
    let proxy = BrokerProxy::start(&tally.config.kafka).await;
    let bootstrap = proxy.bootstrap();
    let through = [("TALLY_KAFKA__BOOTSTRAP", bootstrap.as_str())];
    let mut gateway = tally.start_with(Service::Producer, "a", &through);
    gateway.ready().await;
    let url = format!("{}/v1/increments", gateway.url());
    let body = json!({ "namespace": "web", "key": "k", "at": 1_780_000_000_000_i64 });
    let post = async || gateway.call(gateway.http().post(&url).json(&body)).await;
    let takes = async || {
        until("the gateway to take an increment", async || match post().await {
            (200, _) => Ok(()),
            (_, answer) => Err(answer),
        })
        .await;
    };
    takes().await;

    for _ in 0..10 {
        proxy.name_no_broker(true);
        sleep(Duration::from_millis(700)).await;
        proxy.name_no_broker(false);
        sleep(Duration::from_millis(300)).await;
    }
    takes().await;
    gateway.ready().await;
    gateway.terminate().await;
}
