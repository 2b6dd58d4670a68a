//! How each caller finds what it needs.

use std::net::SocketAddr;

use tally_platform::config::{self, Config, LogFormat};

use super::{Caller, World};

const REPLICATION: i32 = 3;
/// The least that the brokers allow.
const SESSION_TIMEOUT_MS: u64 = 6_000;
const FLUSH_INTERVAL_MS: u64 = 200;

impl World {
    /// A configuration that goes through the links of one caller.
    pub(crate) fn config(&self, caller: Caller) -> Config {
        let mut config = self.direct_config();
        config.kafka.bootstrap = self.bootstrap(caller);
        config.registry.url = registry_url(self.plan.registry.of(caller));
        config.store.url = store_url(self.plan.store.of(caller));
        config
    }

    /// A configuration that goes past the links.
    pub(crate) fn direct_config(&self) -> Config {
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

    pub(crate) fn bootstrap(&self, caller: Caller) -> String {
        self.plan.bootstrap(caller)
    }

    pub(crate) fn direct_bootstrap(&self) -> String {
        self.plan.direct_bootstrap()
    }

    pub(crate) fn registry_url(&self, caller: Caller) -> String {
        registry_url(self.plan.registry.of(caller))
    }

    pub(crate) fn direct_registry_url(&self) -> String {
        registry_url(self.plan.registry.direct)
    }

    pub(crate) fn direct_store_url(&self) -> String {
        store_url(self.plan.store.direct)
    }
}

fn registry_url(address: SocketAddr) -> String {
    format!("http://{address}/apis/ccompat/v7")
}

fn store_url(address: SocketAddr) -> String {
    format!("http://{address}")
}
