//! Faults by the thousand against a stack of its own, and an auditor that counts for itself.

pub mod audit;
mod kind;
mod schedule;
pub mod world;

pub use kind::{Kind, Lane};
pub use schedule::{Planned, Schedule};
