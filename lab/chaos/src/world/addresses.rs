//! How each caller finds what it needs.

use std::net::SocketAddr;

use tally_platform::config::{self, Config, LogFormat};

use super::{Caller, PARTITIONS, World};

const REPLICATION: i32 = 3;
/// The least that the brokers allow.
const SESSION_TIMEOUT_MS: u64 = 6_000;
const FLUSH_INTERVAL_MS: u64 = 200;

impl World {
    /// A configuration that goes through the links of one caller.
    pub(crate) fn config(&self, caller: Caller) -> Config {
        let mut config = self.direct_config();
        config.kafka.bootstrap = self.plan.bootstrap(caller);
        config.registry.url = registry_url(self.plan.registry.of(caller));
        config.store.url = store_url(self.plan.store.of(caller));
        config
    }

    /// A configuration that goes past the links.
    pub(crate) fn direct_config(&self) -> Config {
        Config {
            kafka: config::Kafka {
                bootstrap: self.plan.direct_bootstrap(),
                partitions: PARTITIONS,
                replication: REPLICATION,
                ..config::Kafka::default()
            },
            registry: config::Registry {
                url: registry_url(self.plan.registry.direct),
                ..config::Registry::default()
            },
            store: config::Store {
                url: store_url(self.plan.store.direct),
                ..config::Store::default()
            },
            aggregator: config::Aggregator {
                flush_interval_ms: FLUSH_INTERVAL_MS,
                session_timeout_ms: SESSION_TIMEOUT_MS,
                ..config::Aggregator::default()
            },
            sink: config::Sink {
                session_timeout_ms: SESSION_TIMEOUT_MS,
                ..config::Sink::default()
            },
            telemetry: config::Telemetry {
                log_format: LogFormat::Json,
                ..config::Telemetry::default()
            },
            ..Config::default()
        }
    }
}

fn registry_url(address: SocketAddr) -> String {
    format!("http://{address}/apis/ccompat/v7")
}

fn store_url(address: SocketAddr) -> String {
    format!("http://{address}")
}
