//! The server as clients see it: a process of its own for each test, on a data folder of its own.

mod connect;
mod fence;
mod http;
mod isolation;
mod library;
mod lifecycle;
mod official;
mod process;
