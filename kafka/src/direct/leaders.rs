//! A thread that finds out which broker leads a partition, and starts a fetcher for each such
//! broker.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::runtime::Handle;

use super::broker_fetcher;
use super::shared::Shared;
use crate::{Membership, topics};

/// How long a call for metadata may take.
const CALL: Duration = Duration::from_secs(2);
/// Between two calls for metadata.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Leaders {
    shared: Arc<Shared>,
    consumer: Arc<BaseConsumer<Membership>>,
    topic: String,
    runtime: Handle,
}

impl Leaders {
    pub(super) fn start(
        shared: &Arc<Shared>,
        consumer: &Arc<BaseConsumer<Membership>>,
        topic: &str,
        runtime: &Handle,
    ) -> JoinHandle<()> {
        let leaders = Leaders {
            shared: Arc::clone(shared),
            consumer: Arc::clone(consumer),
            topic: topic.to_owned(),
            runtime: runtime.clone(),
        };
        std::thread::Builder::new()
            .name(String::from("leaders"))
            .spawn(move || leaders.run())
            .expect("the system starts a thread")
    }

    fn run(self) {
        while self.wait_until_missing() {
            if let Err(error) = self.look() {
                tracing::debug!(%error, "Kafka names no partition leaders; asking again");
            }
            let state = self.shared.lock();
            let closed = self
                .shared
                .leader_missing
                .wait_timeout_while(state, PAUSE, |state| !state.is_closed);
            drop(closed.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// `false` at the end.
    fn wait_until_missing(&self) -> bool {
        let state = self.shared.lock();
        let state = self
            .shared
            .leader_missing
            .wait_while(state, |state| !state.is_closed && !state.misses_leader());
        !state.unwrap_or_else(PoisonError::into_inner).is_closed
    }

    fn look(&self) -> Result<(), rdkafka::error::KafkaError> {
        let metadata = topics::metadata(self.consumer.client(), &self.topic, CALL)?;
        let mut leaders = BTreeMap::new();
        for topic in metadata.topics().iter().filter(|topic| topic.name() == self.topic) {
            for partition in topic.partitions().iter().filter(|partition| partition.leader() >= 0) {
                leaders.insert(partition.id(), partition.leader());
            }
        }
        let mut state = self.shared.lock();
        state.set_leaders(&leaders);
        for broker in metadata.brokers() {
            let is_wanted =
                state.partitions.values().any(|partition| partition.leader == Some(broker.id()));
            if !is_wanted || state.is_closed || state.fetchers.contains_key(&broker.id()) {
                continue;
            }
            let Ok(port) = u16::try_from(broker.port()) else {
                tracing::warn!(
                    broker = broker.id(),
                    port = broker.port(),
                    "the Kafka broker has no valid port; looking for the leaders again"
                );
                continue;
            };
            let fetcher = broker_fetcher::run(
                Arc::clone(&self.shared),
                broker.id(),
                broker.host().to_owned(),
                port,
            );
            // It takes itself off the list under the lock that is held here, and so not before it
            // is on it.
            state.fetchers.insert(broker.id(), self.runtime.spawn(fetcher).abort_handle());
        }
        drop(state);
        self.shared.wanted.notify_waiters();
        Ok(())
    }
}
