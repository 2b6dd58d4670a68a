//! The load, the record of it, and the audit: an oracle that shares no code with what it judges.
//!
//! ```text
//!  Load ──messages──► increments, gateways ──► (services under faults) ──► Kafka, ClickHouse,
//!   │                                                                      │          readers
//!   └──► LiveRecord ──────────────────────────────────────► ReadChecker ◄──┼─────────────┘
//!         │                                                                │
//!         └──► Record ──► audit: Evidence ◄────────────────────────────────┘
//!                             └──► Audit
//! ```
//!
//! It decodes, folds and queries for itself: of the project it uses the schemas' text, and nothing
//! else.

mod auditor;
mod codec;
mod content;
mod counters;
mod dice;
mod evidence;
mod inclusion;
mod lag;
mod live_record;
mod load;
mod reads;
mod record;
mod registry;
mod store;
mod topics;
mod verdict;

pub(crate) use auditor::{Endpoints, audit, behind};
pub(crate) use inclusion::Inclusion;
pub(crate) use lag::{Lag, LagCheck};
pub(crate) use load::{Load, LoadOptions};
pub(crate) use reads::{ReadChecker, ReadReport};
pub(crate) use record::Record;
pub(crate) use verdict::Audit;
