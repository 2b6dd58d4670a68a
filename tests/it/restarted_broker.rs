//! A broker that answers again, and does not know yet which partitions it leads.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use tally_platform::config;

use crate::own_broker::OwnBroker;
use crate::topics;

/// So many that the broker needs a moment to take them up.
const PARTITIONS: i32 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_topic_ends_is_told_as_soon_as_its_broker_is_back() {
    let mut broker = OwnBroker::start("restarted_broker", &[]).await;
    let kafka = config::Kafka {
        bootstrap: broker.address.to_string(),
        partitions: PARTITIONS,
        ..config::Kafka::default()
    };
    let topic = NewTopic::new("many", PARTITIONS, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    for created in topics::admin(&kafka).create_topics([&topic], &options).await.expect("answered")
    {
        created.expect("the topic is created");
    }
    broker.kill();
    broker.start_again().await;
    assert_eq!(topics::ends(&kafka, "many").await, vec![0; PARTITIONS as usize]);
}
