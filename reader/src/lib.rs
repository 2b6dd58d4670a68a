//! Answers reads from memory first, then from the store.
//!
//! ```text
//!  requests ──http, request──► reads ──► state: memory (cache + unstored window) ──► answer, as of a position
//!                                │          ▲ apply          ▲ snapshots
//!                                │        tail ◄── deltas    │
//!                                └──misses──► one query for many ──► store ◄── ClickHouse
//! ```
//!
//! `memory` is the core: pure, and the one place that decides what an answer includes. Around it,
//! `state` shares it between threads, `tail` reads the log, `store` queries ClickHouse, `misses`
//! joins what is missed, [`run`] ties them.

mod cache;
mod counter;
mod http;
mod memory;
mod metrics;
mod misses;
mod problem;
mod reads;
mod request;
mod run;
mod start;
mod state;
mod store;
mod tail;
mod vector;
mod window;

pub use run::{Error, run};
