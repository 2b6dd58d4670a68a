//! ClickHouse's HTTP interface over the embedded ClickHouse engine.
//!
//! ```text
//!  client ──HTTP──► server ──► call ──► run ──► sql ──┬─ a query ─────────► engine ──► libchdb
//!                   slots      URL,     session,      ├─ INSERT … FORMAT ─► insert stream
//!                   ids        headers, settings      └─ … FROM input(…) ─► memory file, file(…)
//!                              form     for one call
//!  client ◄──────── reply ◄── answer or exception
//! ```
//!
//! A call gets a connection of its own to the engine, which costs some 60 µs: nothing that one call
//! sets can reach another. A call with a `session_id` gets the session's connection, and what it
//! set for itself is taken back.
//!
//! The engine lives in the process that calls [`serve`], once: it does not start a second time.
//! [`serve`] closes it before it returns: everything is on disk, nothing runs, and the process may
//! exit as it likes. After an error of [`serve`] it may not: see `BUSY` in `server.rs`.

mod body;
mod call;
mod compression;
mod engine;
mod exception;
mod ffi;
mod reply;
mod run;
mod server;
mod sessions;
mod spool;
mod sql;

pub use server::{Config, Server, serve};
