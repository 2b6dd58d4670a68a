//! The whole system on the real stack: Kafka, the schema registry, the ClickHouse engine, and the
//! services as processes of the real binary.
//!
//! ```text
//! stack ── once a test process ──► broker, registry, store
//!                                     ▲
//! a test ──► Installation ── topics, groups and a database of its own, services as child processes
//!    │  Source ─► increments ─► aggregator ─► deltas ─► sink ─► counts
//!    └─ Model ◄── what was sent                                  │
//!         └── prove: all that is in Kafka is stored, every total is the model's, verify agrees,
//!                    no unexpected log line
//! ```
//!
//! Nothing is skipped: a stack that cannot start fails every test with the reason.

mod bombs;
mod broker_proxy;
mod dice;
mod engine;
mod feeder;
mod forger;
mod installation;
mod intercept;
mod model;
mod own_broker;
mod ports;
mod proxy;
mod run;
mod service;
mod source;
mod stack;
mod sys;
mod topics;
mod wait;

mod aborts;
mod chaos;
mod checkpoints;
mod configuration;
mod cut_log;
mod draining;
mod duplicates;
mod evolution;
mod fetching;
mod gateway;
mod go_verifier;
mod init;
mod judging;
mod kills;
mod lag;
mod local;
mod lost_batch;
mod lost_brokers;
mod merges;
mod odd_registry;
mod older_format;
mod outages;
mod proof;
mod python;
mod reader_memory;
mod reader_standstills;
mod reading;
mod rebalance;
mod registry;
mod rejects;
mod restarted_broker;
mod resume;
mod single_server;
mod sleeping;
mod slow_clients;
mod slow_link;
mod stepped_clock;
mod store_back;
mod stored_installation;
mod strangers;
mod tampering;
mod topics_change;
mod unknown_partitions;
mod watching;
mod wide_sums;
