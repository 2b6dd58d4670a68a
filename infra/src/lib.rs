//! The local stack, and what a new installation needs: topics, subjects, tables.

pub mod init;
pub mod local;
