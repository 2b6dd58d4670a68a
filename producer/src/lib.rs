//! The HTTP gateway: increments in, a durable position out.
//!
//! ```text
//!  POST /v1/increments
//!    │ limits: requests in progress             ─► 503
//!    ▼
//!  body: JSON, NDJSON or Avro ──► Item…         ─► 400 with every bad item, 413, 415
//!    ▼
//!  message: one Kafka message a request         ─► 413
//!    │ limits: increments a second              ─► 429
//!    ▼
//!  kafka_log: idempotent, acks=all ──► its report     ─► 503, certainly not applied or unknown
//!    ▼
//!  200 {"accepted", "position"}
//! ```
//!
//! A request is one message, so it is accepted or refused as a whole, and it is answered only once
//! the log has it. Nothing is kept here: a gateway that dies loses no increment that it has
//! answered for.

mod body;
mod http;
mod kafka_log;
mod limits;
mod message;
mod metrics;
mod prerequisites;
mod problem;
mod run;

pub use run::{Error, run};
