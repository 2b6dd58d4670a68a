//! What a new installation needs: topics, subjects, tables.

mod init;

pub use init::{Error, Report, init};
