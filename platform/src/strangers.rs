//! Members of a service's consumer group that are not this service: the partitions that the group
//! gives them are dealt with by nobody.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::metrics::Gauge;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_kafka::{GroupMember, Membership, group_members};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::health::{Condition, Health};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);

/// Looks for strangers until it is dropped.
pub struct Strangers {
    task: JoinHandle<()>,
}

/// The group, as its own members know it.
pub struct Group {
    pub name: String,
    /// What it is there for.
    pub topic: String,
    /// How the client ids of this service's processes begin.
    pub own_prefix: String,
}

struct Look {
    consumer: Arc<BaseConsumer<Membership>>,
    group: Group,
}

impl Strangers {
    /// `service` as it stands in the names of its metrics.
    pub fn start(
        health: &Health,
        service: &str,
        group: Group,
        consumer: &Arc<BaseConsumer<Membership>>,
        runtime: &Handle,
    ) -> Strangers {
        let telling = Telling {
            none: health.condition("no stranger has partitions"),
            gauge: global::meter("tally")
                .u64_gauge(format!("tally_{service}_strangers"))
                .with_description(
                    "Members of the consumer group that are none of this service, and whose \
                     partitions nobody deals with",
                )
                .build(),
            known: BTreeSet::new(),
        };
        telling.none.set(true, "");
        let look = Arc::new(Look { consumer: Arc::clone(consumer), group });
        Strangers { task: runtime.spawn(look_for_ever(look, telling)) }
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look_for_ever(look: Arc<Look>, mut telling: Telling) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let asked = Arc::clone(&look);
        let strangers = tokio::task::spawn_blocking(move || asked.strangers()).await;
        match strangers.expect("asking Kafka does not panic") {
            Ok(strangers) => telling.tell(&look.group, &strangers),
            // What was found before stands.
            Err(error) => tracing::debug!(%error, "Kafka does not tell who is in the group"),
        }
    }
}

impl Look {
    fn strangers(&self) -> Result<Vec<GroupMember>, rdkafka::error::KafkaError> {
        let Group { name, topic, own_prefix } = &self.group;
        let mut members = group_members(self.consumer.client(), name, topic)?;
        members.retain(|member| {
            let has_none = member.partitions.as_ref().is_some_and(Vec::is_empty);
            !member.client_id.starts_with(own_prefix) && !has_none
        });
        Ok(members)
    }
}

struct Telling {
    /// Holds while there is none.
    none: Condition,
    gauge: Gauge<u64>,
    /// Those that the log was told of, as it was told.
    known: BTreeSet<String>,
}

impl Telling {
    fn tell(&mut self, Group { name, topic, .. }: &Group, strangers: &[GroupMember]) {
        let told = |GroupMember { client_id, host, partitions }: &GroupMember| match partitions {
            Some(partitions) => {
                format!("{client_id} at {host} has partitions {partitions:?} of {topic}")
            }
            None => format!(
                "{client_id} at {host} has an assignment that cannot be read, perhaps with \
                     partitions of {topic}"
            ),
        };
        let strangers: BTreeSet<String> = strangers.iter().map(told).collect();
        for stranger in strangers.difference(&self.known) {
            tracing::warn!(
                group = name,
                "a consumer that is not Tally's is in the group: {stranger}, which nobody deals \
                 with until it leaves; the other partitions go on"
            );
        }
        if strangers.is_empty() && !self.known.is_empty() {
            tracing::info!(group = name, "all partitions of the group are Tally's again");
        }
        self.gauge.record(strangers.len() as u64, &[]);
        let all: Vec<&str> = strangers.iter().map(String::as_str).collect();
        let reason = format!("in the consumer group {name}, {}", all.join("; "));
        self.none.set(all.is_empty(), reason);
        self.known = strangers;
    }
}
