//! Faults by the thousand against a stack of its own, and an auditor that counts for itself.
//!
//! ```text
//!  Schedule (seed) ──► Injector: strikes and heals ──► World: brokers, registry, store,
//!                                                      ▲      services, links
//!                                 Load ────────────────┘        │
//!                                  │                            ▼
//!                                  └──► Record ───────────────► audit ──► Report: passed,
//!                                                                         failed or unknown
//! ```

mod audit;
mod fault;
mod fault_scope;
mod faults;
mod freshness;
mod history;
mod memory;
mod report;
mod run;
mod schedule;
mod standstill;
mod standstill_watch;
mod supervisor;
mod takeover;
mod without_numbers;
mod world;

pub use fault::FaultKind;
pub use report::{Report, Verdict};
pub use run::{RunOptions, run};
