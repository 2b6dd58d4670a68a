//! Just enough of ClickHouse's grammar to tell a statement from the data behind it.

mod lexer;
mod quote;
mod statement;

pub(crate) use quote::{identifier, literal};
pub(crate) use statement::{Insert, Setting, Source, Statement};
