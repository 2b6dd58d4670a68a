use std::fmt::Write;
use std::path::Path;

use clickhouse::query::RowCursor;
use clickhouse::{Client, Row};
use serde::Deserialize;

use super::quoted;

/// Increments that each flight is counted by.
pub(super) const INCREMENTS: u64 = 5;

#[derive(Row, Deserialize)]
pub(super) struct Flight {
    pub(super) at_ms: i64,
    /// Minutes; negative when early.
    pub(super) delay: i64,
    /// Miles.
    pub(super) distance: i64,
    pub(super) origin: String,
    pub(super) destination: String,
}

impl Flight {
    /// Calls `each` with a key and an amount for everything that the flight is counted by.
    pub(super) fn increments(&self, key: &mut String, mut each: impl FnMut(&str, i64)) {
        let Flight { delay, distance, origin, destination, .. } = self;
        let mut add = |name: std::fmt::Arguments<'_>, delta: i64| {
            key.clear();
            key.write_fmt(name).expect("a string takes everything");
            each(key, delta);
        };
        add(format_args!("departures:{origin}"), 1);
        add(format_args!("arrivals:{destination}"), 1);
        add(format_args!("route:{origin}-{destination}"), 1);
        add(format_args!("miles:{origin}-{destination}"), *distance);
        add(format_args!("delay_minutes:{origin}"), *delay);
    }
}

/// The same increments in ClickHouse's SQL, as an array of (key, amount) of a flight.
pub(super) const SQL: &str = "[('departures:' || origin, toInt64(1)), \
     ('arrivals:' || destination, 1), ('route:' || origin || '-' || destination, 1), \
     ('miles:' || origin || '-' || destination, distance), \
     ('delay_minutes:' || origin, delay)]";

/// The file as a table: no column is null in it, and it would be an error if one were.
pub(super) fn table(file: &Path) -> String {
    format!(
        "(SELECT toUnixTimestamp64Milli(assumeNotNull(date)) AS at_ms, \
         assumeNotNull(delay) AS delay, \
         assumeNotNull(distance) AS distance, assumeNotNull(origin) AS origin, \
         assumeNotNull(destination) AS destination FROM file({}))",
        quoted(file)
    )
}

pub(super) async fn count(client: &Client, file: &Path) -> anyhow::Result<u64> {
    let quoted = quoted(file);
    let nulls = "countIf(date IS NULL OR delay IS NULL OR distance IS NULL \
                 OR origin IS NULL OR destination IS NULL)";
    let sql = format!("SELECT count(), {nulls} FROM file({quoted})");
    let (flights, incomplete): (u64, u64) = client.query_raw(&sql).fetch_one().await?;
    anyhow::ensure!(incomplete == 0, "{incomplete} flights in the file are incomplete");
    Ok(flights)
}

/// Every flight of the file, once each. In no certain order: a second reading may have another.
pub(super) fn read(client: &Client, file: &Path) -> anyhow::Result<RowCursor<Flight>> {
    let sql = format!("SELECT at_ms, delay, distance, origin, destination FROM {}", table(file));
    Ok(client.query_raw(&sql).fetch::<Flight>()?)
}
