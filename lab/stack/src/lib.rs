//! The local stack: a real broker, schema registry and ClickHouse engine on loopback, in the
//! background.
//!
//! ```text
//! up ──► prerequisites ──► artifacts (Maven, npm ──► cache) ──► process (detached) ──► ready
//!                                                                  │
//!                                                      <dir>/stack.json ◄── status, down
//! ```
//!
//! Everything that a stack owns is in its folder, so two stacks with two folders and their own
//! ports run side by side:
//!
//! ```text
//! <dir>/kafka/       the broker's configuration and logs (in Kafka's sense)
//! <dir>/registry/    the registry's database
//! <dir>/store/       the engine's tables
//! <dir>/logs/        what each process prints: <part>.log, and <part>.log.1 of the run before
//! <dir>/stack.json   which processes were started
//! ```

pub mod artifacts;
pub mod broker;
mod down;
mod error;
mod lock;
mod part;
mod prerequisites;
pub mod process;
mod progress;
mod ready;
pub mod registry;
mod services;
mod stack;
pub mod state;
mod status;
pub mod store;
pub mod sys;
mod up;

pub use down::{Down, down, remove_folder, start_over};
pub use error::log_end;
pub use part::{NoAnswer, Part, get, http_client};
pub use progress::Progress;
pub use services::{ServiceArgs, ServiceProcess, Services};
pub use stack::{Stack, StackArgs};
pub use status::{Condition, PartStatus, Status, status};
pub use store::store_library;
pub use up::up;
