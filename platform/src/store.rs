//! ClickHouse, over HTTP.
//!
//! The table `counts` holds the counts and the ledger; each Kafka partition has a partition of the
//! table. Nothing here writes: the sink inserts, and `tally init` makes the tables.

mod fingerprints;
mod ledger;
mod ledger_row;
mod part_counts;
mod rules;
mod support;
mod unknown_partitions;

use clickhouse::Client;

use crate::config;

pub use fingerprints::{
    StoredCell, StoredCells, StoredCounts, WholeCounts, stored_cells, stored_counts,
};
pub use ledger::{Ledger, ledger, ledgers};
pub use part_counts::PartCounts;
pub use rules::{TableRules, rules};
pub use support::{SupportError, Unsupported, check_support};
pub use unknown_partitions::{UnknownPartitions, unknown_partitions};

/// The name of the table, and of the view that users read.
pub const COUNTS: &str = "counts";
pub const COUNTERS: &str = "counters";

pub fn client(store: &config::Store) -> Client {
    let mut client = Client::default().with_url(&store.url).with_database(&store.database);
    if let Some(user) = &store.user {
        client = client.with_user(user);
    }
    if let Some(password) = &store.password {
        client = client.with_password(password.expose());
    }
    client
}
