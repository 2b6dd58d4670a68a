//! The local stack, and what a new installation needs: topics, subjects, tables.

pub mod local;
pub mod init;
