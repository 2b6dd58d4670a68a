//! What the counts table comes to, part by part: a part never changes once it is there, so only the
//! new ones are read, and merged ones among them.
//!
//! ```text
//!  parts of a snapshot   known: one row, that it is there ─► what it came to when it was read
//!                        new: all rows ──────────────────► what they come to, kept
//! ```
//!
//! A lightweight update or delete may change what is read of a part, and its name may stay. So what
//! is compared this way and differs must be read whole before anything is said of it, and so must
//! what is signed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use clickhouse::Client;
use clickhouse::error::Error;
use tally_counts::Salt;

use super::COUNTS;
use super::fingerprints::{Parts, RangeRow, StoredCounts, sql_ranges};

/// At most so many parts are kept, those with the most rows: 8 KiB each, and their names in a
/// query.
const MOST_PARTS: usize = 1024;

pub struct PartCounts {
    salt: Salt,
    /// ClickHouse's id of the table whose parts these are.
    table: String,
    /// By name.
    parts: HashMap<String, Part>,
}

#[derive(Default)]
struct Part {
    rows: u64,
    /// By Kafka partition, of which a part has one.
    counts: BTreeMap<i32, StoredCounts>,
}

impl PartCounts {
    pub fn new(salt: &Salt) -> PartCounts {
        PartCounts { salt: *salt, table: String::new(), parts: HashMap::new() }
    }

    /// Reads every part.
    pub async fn read_whole(
        &mut self,
        client: &Client,
    ) -> Result<BTreeMap<i32, StoredCounts>, Error> {
        self.parts.clear();
        self.read_new(client).await
    }

    /// Reads the parts that were not read before.
    pub async fn read_new(
        &mut self,
        client: &Client,
    ) -> Result<BTreeMap<i32, StoredCounts>, Error> {
        let sql = format!(
            "SELECT toString(uuid) FROM system.tables \
             WHERE database = currentDatabase() AND name = '{COUNTS}'"
        );
        let table = client.query(&sql).fetch_one::<String>().await?;
        if table != self.table {
            self.parts.clear();
            self.table = table;
        }
        let known: Vec<String> = self.parts.keys().map(|part| format!("'{part}'")).collect();
        let sql = sql_ranges(&self.salt, Parts::Apart { known: &known.join(", ") }, "1");
        let mut rows = client.query(&sql).fetch::<RangeRow>()?;
        let (mut new, mut there) = (HashMap::<String, Part>::new(), BTreeSet::new());
        while let Some(row) = rows.next().await? {
            if row.is_of_known_part() {
                there.insert(row.part);
                continue;
            }
            let part = new.entry(row.part.clone()).or_default();
            part.rows += row.rows;
            part.counts.entry(row.partition()).or_default().add_row(&row);
        }
        self.parts.retain(|name, _| there.contains(name));
        self.parts.extend(new);
        let mut stored: BTreeMap<i32, StoredCounts> = BTreeMap::new();
        for (partition, counts) in self.parts.values().flat_map(|part| &part.counts) {
            stored.entry(*partition).or_default().add(counts);
        }
        self.forget_small();
        Ok(stored)
    }

    fn forget_small(&mut self) {
        if self.parts.len() > MOST_PARTS {
            let mut rows: Vec<u64> = self.parts.values().map(|part| part.rows).collect();
            rows.sort_unstable_by(|a, b| b.cmp(a));
            let least = rows[MOST_PARTS];
            self.parts.retain(|_, part| part.rows > least);
        }
    }
}
