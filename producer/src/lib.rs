//! The HTTP gateway: increments in, a durable position out.
//!
//! ```text
//!  POST /v1/increments
//!    │ the edge: the body arrives, decompressed ─► 408, 413, 415; 503 without room for its bytes
//!    │ limits: requests in flight               ─► 503
//!    ▼
//!  body: JSON, NDJSON or Avro ──► Item…         ─► 400 with every bad item
//!    ▼
//!  message: one Kafka message, or several      ─► 413
//!    │ limits: increments a second              ─► 429
//!    ▼
//!  kafka_log: idempotent, acks=all ──► reports  ─► 503, certainly not applied; 504, unknown
//!    ▼
//!  200 {"accepted", "position"}
//! ```
//!
//! A request is checked as a whole before anything of it is sent, and accepted only once the log
//! has all of it. It is one message, all or nothing, unless its increments have ids: each of those
//! goes to the partition that its counter and id say, so that it is recognised however the request
//! is cut when it comes again. Nothing is kept here: a gateway that dies loses no increment that it
//! has answered for.

mod body;
mod http;
mod kafka_log;
mod limits;
mod message;
mod metrics;
mod partitioner;
mod prerequisites;
mod problem;
mod run;

pub use run::{Error, run};
