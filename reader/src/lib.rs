//! Answers reads from memory first, then from the store.
//!
//! ```text
//!  requests ──http, request──► reads ──► memory (cache + unstored window) ──► answer
//!                                │          ▲ apply          ▲ snapshots
//!                                │        tail ◄── deltas    │
//!                                │          ▲ inquiry: where ClickHouse and Kafka are, schemas
//!                                └──misses──► one query for many ──► store ◄── ClickHouse
//! ```
//!
//! `counter_memory` is the core: pure, and the one place that decides what an answer includes.
//! Around it, `shared_memory` shares it between threads, `tail` reads the log, `store` queries
//! ClickHouse, `misses` joins what is missed, [`run`] ties them. A partition whose tail cannot go
//! on stops alone, and `standstills` tells of it.

mod cache;
mod counter;
mod counter_memory;
mod http;
mod inquiry;
mod metrics;
mod misses;
mod problem;
mod reads;
mod request;
mod run;
mod shared_memory;
mod standstills;
mod starting_point;
mod store;
mod tail;
mod vector;
mod verified;
mod window;

pub use run::{Error, run};
