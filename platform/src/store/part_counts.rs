//! What the counts table comes to, part by part: a part never changes once it is there, so only the
//! new ones are read, and merged ones among them.
//!
//! ```text
//!  a partition whose turn it is    all rows, under the keyed fingerprint ──► proves
//!  the others  parts known         no row: what each came to when it was read
//!              parts new           all rows, under the quick fingerprint, which is kept
//! ```
//!
//! A part that is known and that no new one covers was there when the new ones were read:
//! ClickHouse puts a part in the place of those that it covers in one step.
//!
//! A lightweight update or delete may change what is read of a part, and its name may stay. So what
//! is compared by new parts and differs must be read whole before anything is said of it, and so
//! must what is signed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use clickhouse::error::Error;
use clickhouse::{Client, Row};
use serde::Deserialize;
use tally_counts::{QuickFingerprint, Salt};

use super::COUNTS;
use super::fingerprints::{
    Parts, RangeRow, StoredCounts, ledger_of_kind, sql_is_count, sql_ledger_kind, sql_ranges,
};
use super::ledger::Ledger;
use super::ledger_row::{kafka_partition, sql_is_ledger};

/// At most so many parts are kept, those with the most rows: their names are in a query.
const MOST_PARTS: usize = 1024;

pub struct PartCounts {
    salt: Salt,
    /// ClickHouse's id of the table whose parts these are.
    table: String,
    parts: HashMap<PartName, Part>,
}

/// The Kafka partition, and ClickHouse's name.
type PartName = (i32, String);

#[derive(Clone, Copy, Default)]
struct Part {
    rows: u64,
    ledger: Ledger,
    quick: QuickFingerprint,
}

/// What some rows of one part come to: the counts, or the rows of one ledger key.
#[derive(Row, Deserialize)]
struct QuickRow {
    partition: u32,
    part: String,
    /// [`COUNTS_KIND`], or a kind of [`ledger_of_kind`].
    kind: i32,
    quick: i128,
    total: i128,
    highest: i64,
    rows: u64,
}

const COUNTS_KIND: i32 = 0;

impl PartCounts {
    pub fn new(salt: &Salt) -> PartCounts {
        PartCounts { salt: *salt, table: String::new(), parts: HashMap::new() }
    }

    /// Reads all rows of these Kafka partitions, `None` being all partitions, and of the others
    /// those that were not read before. A partition's rows are of one snapshot.
    pub async fn read(
        &mut self,
        client: &Client,
        whole: Option<&BTreeSet<i32>>,
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
        let Some(whole) = whole else {
            let (stored, parts) = self.read_whole(client, "1").await?;
            self.parts = parts;
            self.forget_small();
            return Ok(stored);
        };
        // Each of the two is one snapshot; no partition is in both.
        let of_whole = async {
            match whole.is_empty() {
                true => Ok((BTreeMap::new(), HashMap::new())),
                false => self.read_whole(client, &sql_is_of(whole)).await,
            }
        };
        let of_others = self.read_new(client, whole);
        let ((mut stored, parts), mut others) = tokio::try_join!(of_whole, of_others)?;
        for (partition, part) in others.iter().map(|((partition, _), part)| (partition, part)) {
            let of = stored.entry(*partition).or_default();
            of.whole = None;
            of.quick += part.quick;
            of.ledger.add(&part.ledger);
        }
        others.extend(parts);
        self.parts = others;
        self.forget_small();
        Ok(stored)
    }

    async fn read_whole(
        &self,
        client: &Client,
        condition: &str,
    ) -> Result<(BTreeMap<i32, StoredCounts>, HashMap<PartName, Part>), Error> {
        let sql = sql_ranges(&self.salt, Parts::Apart(condition), "1");
        let mut rows = client.query(&sql).fetch::<RangeRow>()?;
        let mut stored: BTreeMap<i32, StoredCounts> = BTreeMap::new();
        let mut parts: HashMap<PartName, Part> = HashMap::new();
        while let Some(row) = rows.next().await? {
            let Some(partition) = row.partition() else { continue };
            stored.entry(partition).or_default().add_row(&row);
            let part = parts.entry((partition, row.part.clone())).or_default();
            row.add_to(&mut part.ledger, &mut part.quick);
            part.rows += row.rows;
        }
        Ok((stored, parts))
    }

    /// All parts of all partitions but these: what is known of them, or what their rows come to.
    async fn read_new(
        &self,
        client: &Client,
        but_for: &BTreeSet<i32>,
    ) -> Result<HashMap<PartName, Part>, Error> {
        let sql = format!(
            "SELECT name FROM system.parts \
             WHERE database = currentDatabase() AND table = '{COUNTS}' AND active"
        );
        let active = client.query(&sql).fetch_all::<String>().await?;
        let active: HashSet<String> = active.into_iter().collect();
        let mut parts: HashMap<PartName, Part> = self
            .parts
            .iter()
            .filter(|((partition, name), _)| !but_for.contains(partition) && active.contains(name))
            .map(|(name, part)| (name.clone(), *part))
            .collect();
        let known: Vec<String> = parts.keys().map(|(_, name)| format!("'{name}'")).collect();
        let sql = sql_new_parts(&self.salt, &known.join(", "), &sql_is_of(but_for));
        let mut rows = client.query(&sql).fetch::<QuickRow>()?;
        let mut new: HashMap<PartName, Part> = HashMap::new();
        while let Some(row) = rows.next().await? {
            let Some(partition) = kafka_partition(row.partition) else { continue };
            let part = new.entry((partition, row.part)).or_default();
            match row.kind {
                COUNTS_KIND => part.quick += QuickFingerprint::from_bits(row.quick),
                kind => part.ledger.add(&ledger_of_kind(kind, row.total, row.highest)),
            }
            part.rows += row.rows;
        }
        let blocks: Vec<Blocks> = new.keys().filter_map(|(_, name)| Blocks::of(name)).collect();
        parts.retain(|(_, name), _| {
            Blocks::of(name).is_some_and(|known| !blocks.iter().any(|new| new.covers(&known)))
        });
        parts.extend(new);
        Ok(parts)
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

/// Which blocks of rows are in a part, as its name says:
/// `{partition}_{first}_{last}_{level}[_{mutation}]`.
struct Blocks<'a> {
    /// ClickHouse's partition.
    partition: &'a str,
    first: u64,
    last: u64,
    level: u64,
    mutation: u64,
}

impl Blocks<'_> {
    fn of(name: &str) -> Option<Blocks<'_>> {
        let mut words = name.split('_');
        let partition = words.next()?;
        let numbers: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        match numbers[..] {
            [first, last, level] => Some(Blocks { partition, first, last, level, mutation: 0 }),
            [first, last, level, mutation] => {
                Some(Blocks { partition, first, last, level, mutation })
            }
            _ => None,
        }
    }

    /// Whether a part of these blocks has taken the other's place.
    fn covers(&self, other: &Blocks<'_>) -> bool {
        self.partition == other.partition
            && self.first <= other.first
            && self.last >= other.last
            && self.level >= other.level
            && self.mutation >= other.mutation
    }
}

/// Whether a row is of one of these partitions.
fn sql_is_of(partitions: &BTreeSet<i32>) -> String {
    let each: Vec<String> =
        partitions.iter().map(|partition| format!("partition = {partition}")).collect();
    if each.is_empty() { String::from("0") } else { format!("({})", each.join(" OR ")) }
}

/// The query for [`QuickRow`]s of all parts but the known ones, but for Kafka partitions that meet
/// the condition.
fn sql_new_parts(salt: &Salt, known: &str, but_for: &str) -> String {
    let is_new = match known {
        "" => String::from("1"),
        known => format!("_part NOT IN ({known})"),
    };
    let is_count = sql_is_count();
    format!(
        "SELECT partition, any(_part) AS part, \
         toInt32(if({is_count}, {COUNTS_KIND}, {})) AS kind, \
         {} AS quick, sum(sum) AS total, max(high) AS highest, count() AS rows \
         FROM (SELECT *, _part, _part_index, sum FROM {COUNTS} \
         WHERE {is_new} AND NOT {but_for} AND ({is_count} OR ({}))) \
         GROUP BY _part_index, partition, kind",
        sql_ledger_kind(),
        salt.sql_quick_fingerprint(),
        sql_is_ledger(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_covered_by_the_one_that_took_its_place() {
        let covers = |new, known| {
            let blocks = |name| Blocks::of(name).expect("it is a part's name");
            blocks(new).covers(&blocks(known))
        };
        assert!(covers("7_1_9_2", "7_3_5_1"));
        assert!(covers("7_1_9_2_11", "7_1_9_2"));
        assert!(covers("7_1_9_2_11", "7_1_9_2_10"));
        assert!(!covers("7_1_9_2", "7_10_10_0"));
        assert!(!covers("7_1_9_2", "7_9_10_1"));
        assert!(!covers("17_1_9_2", "7_3_5_1"));
        assert!(!covers("7_3_5_1", "7_1_9_2"));
        for strange in ["", "7", "7_1_2", "7_1_2_x", "7_1_2_3_4_5", "all-1"] {
            assert!(Blocks::of(strange).is_none(), "{strange:?}");
        }
    }
}
