//! Whether ClickHouse is set up in a way that Tally supports: one server, with a table of its own.
//!
//! ```text
//!  some new connections ──► which server, which table counts? ──► not all the same: a balancer
//!                                                             └─► its engine: not init's
//! ```
//!
//! The sink reads the ledger to learn whether its last block is in. On a replica that lags, or on
//! the other server behind a balancer, it takes a block that is in for lost, and sends it with a
//! new token, which no server has seen: the block is stored twice. So what has several servers is
//! refused, by name, until it is supported.

use std::fmt;

use clickhouse::{Client, Row};
use serde::Deserialize;

use super::{COUNTS, client, ledger};
use crate::config;

/// What `tally init` makes.
const ENGINE: &str = "SummingMergeTree";
/// A balancer before two servers sends all of so many connections to one of them once in 128 times
/// if it draws lots, and never if it takes turns.
const CONNECTIONS: usize = 8;

/// Why Tally does not count into this ClickHouse.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unsupported {
    #[error(
        "table {table} in ClickHouse has the engine {engine}, {reason}. Tally supports {ENGINE} \
         on one server only, as `tally init` makes it, and stores nothing here"
    )]
    Engine { table: String, engine: String, reason: &'static str },
    #[error(
        "store.url {url} leads to several servers: of {CONNECTIONS} connections, one reached \
         {one}, another {other}. A block that is on one of them and not yet on the other would be \
         stored twice: name one server in store.url"
    )]
    Servers { url: String, one: String, other: String },
}

/// Why it is not known that ClickHouse is supported.
#[derive(Debug, thiserror::Error)]
pub enum SupportError {
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error("ask ClickHouse which server it is: {0}")]
    Store(#[from] clickhouse::error::Error),
}

/// What one connection says.
#[derive(Clone, Debug, PartialEq, Eq, Row, Deserialize)]
struct Identity {
    server: String,
    host: String,
    /// ClickHouse's id of the table `counts`. Empty, as its engine is, where there is none.
    table: String,
    engine: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { server, host, table, .. } = self;
        write!(f, "host {host} (server {server}, ")?;
        if table.is_empty() {
            write!(f, "without a table {COUNTS})")
        } else {
            write!(f, "table {COUNTS} {table})")
        }
    }
}

/// Refuses what is not supported. A table that is not there yet is no fault.
pub async fn check_support(store: &config::Store) -> Result<(), SupportError> {
    // Each has a connection of its own, which stays open: a balancer that looks for the server with
    // the fewest finds another.
    let mut connections: Vec<Client> = Vec::new();
    let mut first: Option<Identity> = None;
    for _ in 0..CONNECTIONS {
        // The database may not be there yet, and this one always is.
        let connection = client(store).with_database("system");
        let identity = ask(&connection, &store.database).await?;
        connections.push(connection);
        let one = first.get_or_insert_with(|| identity.clone());
        if *one != identity {
            let (url, one, other) = (store.url.clone(), one.to_string(), identity.to_string());
            return Err(Unsupported::Servers { url, one, other }.into());
        }
    }
    match first {
        Some(identity) if !identity.engine.is_empty() => {
            Ok(judge(&format!("{}.{COUNTS}", store.database), &identity.engine)?)
        }
        _ => Ok(()),
    }
}

async fn ask(connection: &Client, database: &str) -> Result<Identity, clickhouse::error::Error> {
    // One row, whether the table is there or not.
    let sql = "SELECT toString(serverUUID()) AS server, hostName() AS host, \
               any(toString(uuid)) AS table, any(tables.engine) AS engine \
               FROM system.tables AS tables WHERE database = ? AND name = ?";
    ledger::within(connection.query(sql).bind(database).bind(COUNTS).fetch_one()).await
}

fn judge(table: &str, engine: &str) -> Result<(), Unsupported> {
    match fault(engine) {
        None => Ok(()),
        Some(reason) => {
            Err(Unsupported::Engine { table: table.to_owned(), engine: engine.to_owned(), reason })
        }
    }
}

/// What is wrong with counting into a table of this engine.
fn fault(engine: &str) -> Option<&'static str> {
    if engine == ENGINE {
        return None;
    }
    Some(if engine.starts_with("Replicated") || engine.starts_with("Shared") {
        "which has replicas: on one that lags, the sink would take a block that is stored for \
         lost, and store it twice"
    } else if engine.ends_with("MergeTree") {
        "which does not put rows of one counter together by adding them up"
    } else {
        "which keeps no rows itself, or not as one part a block: what is stored of a block could \
         not be told"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_engine_that_init_makes_is_supported() {
        let refused = |engine: &str| {
            let error = judge("tally.counts", engine).unwrap_err().to_string();
            let named = format!("table tally.counts in ClickHouse has the engine {engine}, which ");
            assert!(error.starts_with(&named), "{error}");
            error
        };
        assert_eq!(judge("tally.counts", "SummingMergeTree"), Ok(()));
        for engine in ["ReplicatedSummingMergeTree", "SharedSummingMergeTree"] {
            assert!(refused(engine).contains("which has replicas"));
        }
        for engine in ["MergeTree", "AggregatingMergeTree", "ReplacingMergeTree"] {
            assert!(refused(engine).contains("by adding them up"));
        }
        for engine in [
            "Distributed",
            "Merge",
            "Buffer",
            "URL",
            "View",
            "MaterializedView",
            "Null",
            "Log",
            "Dictionary",
            "Memory",
            "S3",
            "an engine of a later version",
        ] {
            assert!(refused(engine).contains("keeps no rows itself"));
        }
    }
}
