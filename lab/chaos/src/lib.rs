//! Faults by the thousand against a stack of its own, and an auditor that counts for itself.
//!
//! ```text
//!  Schedule (seed) ──► Ground: strikes and heals ──► World: brokers, registry, store, services, links
//!                                                      ▲                       │
//!                                        Load ─────────┘                       ▼
//!                                         └──► Record ──────────────────► audit ──► Report: passed, failed or unknown
//! ```

pub mod audit;
mod faults;
mod history;
mod kind;
mod report;
mod run;
mod schedule;
mod slots;
mod takeover;
pub mod world;

pub use history::Tally;
pub use kind::{Kind, Lane};
pub use report::{Report, Verdict};
pub use run::{RunOptions, run};
