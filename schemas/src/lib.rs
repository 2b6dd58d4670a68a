//! The Avro schemas of Tally and their codec. Pure: bytes in, values out, no I/O.
//!
//! ```text
//!                         ┌─ schema id ──► (the registry) ──► writer schema ──► Plan::new, once
//!  payload ─► wire::split ┤                                                          │
//!                         └─ body ──────────────────────────────► Plan::decode ◄─────┘
//!                                                                   └──► Increment…
//!
//!  Increment… ──► encode::BatchEncoder ──► body            Delta… ──► delta_batch::encode ──► body
//!                                                          body ──► DeltaBatch::decode ──► Delta…
//! ```
//!
//! Increments come from anyone, so they are read by the schema of whoever wrote them ([`Plan`]).
//! Delta batches are Tally's own, but of whichever version wrote them ([`DeltaBatchPlan`]).

pub mod avsc;
mod cursor;
pub mod delta_batch;
pub mod encode;
mod error;
mod increment;
mod plan;
mod utf8;
mod varint;
pub mod wire;

pub use delta_batch::{Delta, DeltaBatch, DeltaBatchHeader, DeltaBatchPlan};
pub use encode::BatchEncoder;
pub use error::{DecodeError, Reason};
pub use increment::{Increment, Message};
pub use plan::{MessageType, Plan, PlanError};
