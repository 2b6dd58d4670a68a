//! How each side finds what it needs.

use std::net::SocketAddr;

use tally_platform::config::{self, Config, LogFormat};

use super::{Side, World};

const REPLICATION: i32 = 3;
/// The least that the brokers allow.
const SESSION_TIMEOUT_MS: u64 = 6_000;
const FLUSH_INTERVAL_MS: u64 = 200;

impl World {
    /// A configuration that goes through the links of one side.
    pub fn config(&self, side: Side) -> Config {
        let mut config = self.direct_config();
        config.kafka.bootstrap = self.bootstrap(side);
        config.registry.url = registry_url(self.plan.registry.of(side));
        config.store.url = store_url(self.plan.store.of(side));
        config
    }

    /// A configuration that goes past the links.
    pub fn direct_config(&self) -> Config {
        Config {
            kafka: config::Kafka {
                bootstrap: self.direct_bootstrap(),
                partitions: self.partitions,
                replication: REPLICATION,
                ..config::Kafka::default()
            },
            registry: config::Registry {
                url: self.direct_registry_url(),
                ..config::Registry::default()
            },
            store: config::Store { url: self.direct_store_url(), ..config::Store::default() },
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

    pub fn bootstrap(&self, side: Side) -> String {
        self.plan.bootstrap(side)
    }

    pub fn direct_bootstrap(&self) -> String {
        self.plan.direct_bootstrap()
    }

    pub fn registry_url(&self, side: Side) -> String {
        registry_url(self.plan.registry.of(side))
    }

    pub fn direct_registry_url(&self) -> String {
        registry_url(self.plan.registry.direct)
    }

    pub fn direct_store_url(&self) -> String {
        store_url(self.plan.store.direct)
    }
}

fn registry_url(address: SocketAddr) -> String {
    format!("http://{address}/apis/ccompat/v7")
}

fn store_url(address: SocketAddr) -> String {
    format!("http://{address}")
}
