//! What every service stands on: one configuration, telemetry, health, and the clients of the log,
//! the schema registry and the store. A service takes its part of the configuration and a shutdown
//! token, and returns once it has drained.

pub mod causes;
pub mod checkpoint_key;
pub mod closing;
pub mod config;
pub mod delta_batches;
pub mod exit;
pub mod health;
pub mod http;
pub mod partition_metrics;
pub mod plans;
pub mod problem;
pub mod process;
pub mod progress_watch;
pub mod quiet_log;
pub mod registry;
pub mod retry;
pub mod service;
pub mod store;
pub mod strangers;
pub mod telemetry;
pub mod unserved;
pub mod verified;
