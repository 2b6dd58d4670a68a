//! Every total beside ClickHouse's own aggregate over the file, and some of them through the
//! reader.

use std::path::Path;

use clickhouse::{Client, Row};
use serde::{Deserialize, Serialize};
use tally_platform::config::Config;

use super::{NAMESPACE, flights};

/// Differences that are listed; all are counted.
const LISTED: usize = 10;
const BUSIEST: usize = 8;

pub(super) struct Totals {
    /// Counters in the file and in the store together.
    pub(super) counters: u64,
    /// Counters whose value or events differ.
    pub(super) different: u64,
    pub(super) listed: Vec<Difference>,
    /// Rows that the store keeps, merged or not.
    pub(super) rows: u64,
    pub(super) busiest: Vec<Airport>,
    pub(super) routes: Vec<Route>,
}

#[derive(Row, Deserialize)]
pub(super) struct Difference {
    pub(super) key: String,
    pub(super) file_value: i64,
    pub(super) value: i128,
    pub(super) file_events: u64,
    pub(super) events: i64,
}

#[derive(Row, Deserialize, Clone)]
pub(super) struct Airport {
    pub(super) code: String,
    pub(super) departures: i64,
    pub(super) arrivals: i64,
    pub(super) delay_minutes: i64,
}

#[derive(Row, Deserialize)]
pub(super) struct Route {
    pub(super) route: String,
    pub(super) flights: i64,
    pub(super) miles: i64,
}

pub(super) async fn compare(client: &Client, file: &Path) -> anyhow::Result<Totals> {
    let joined = format!(
        "(SELECT key, sum(amount) AS file_value, count() AS file_events FROM \
         (SELECT arrayJoin({}) AS pair, pair.1 AS key, pair.2 AS amount FROM {}) \
         GROUP BY key) AS in_file \
         FULL OUTER JOIN \
         (SELECT key, sum(value) AS value, sum(events) AS events FROM counters \
         WHERE namespace = '{NAMESPACE}' GROUP BY key) AS in_store USING key",
        flights::SQL,
        flights::table(file)
    );
    let differs = "file_value != value OR toInt64(file_events) != events";
    let sql = format!("SELECT count(), countIf({differs}) FROM {joined}");
    let (counters, different): (u64, u64) = client.query_raw(&sql).fetch_one().await?;
    let sql = format!(
        "SELECT key, file_value, value, file_events, events FROM {joined} \
         WHERE {differs} ORDER BY key LIMIT {LISTED}"
    );
    let listed = client.query_raw(&sql).fetch_all().await?;
    let rows = client.query("SELECT count() FROM counts").fetch_one().await?;
    Ok(Totals {
        counters,
        different,
        listed,
        rows,
        busiest: client.query_raw(&airports_sql()).fetch_all().await?,
        routes: client.query_raw(&routes_sql()).fetch_all().await?,
    })
}

fn airports_sql() -> String {
    let of = |kind: &str| format!("toInt64(sumIf(value, startsWith(key, '{kind}:')))");
    format!(
        "SELECT splitByChar(':', key)[2] AS code, \
         {} AS departures, {} AS arrivals, {} AS delay_minutes \
         FROM counters WHERE namespace = '{NAMESPACE}' \
         AND match(key, '^(departures|arrivals|delay_minutes):') \
         GROUP BY code ORDER BY departures DESC, code LIMIT {BUSIEST}",
        of("departures"),
        of("arrivals"),
        of("delay_minutes")
    )
}

fn routes_sql() -> String {
    format!(
        "SELECT splitByChar(':', key)[2] AS route, \
         toInt64(sumIf(value, startsWith(key, 'route:'))) AS flights, \
         toInt64(sumIf(value, startsWith(key, 'miles:'))) AS miles \
         FROM counters WHERE namespace = '{NAMESPACE}' AND match(key, '^(route|miles):') \
         GROUP BY route ORDER BY flights DESC, route LIMIT {BUSIEST}"
    )
}

/// What the reader says of the busiest airports' departures.
pub(super) struct ReadBack {
    pub(super) asked: usize,
    pub(super) wrong: Vec<String>,
}

#[derive(Serialize)]
struct CountersQuery {
    counters: Vec<CounterName>,
}

#[derive(Serialize)]
struct CounterName {
    namespace: &'static str,
    key: String,
}

#[derive(Deserialize)]
struct CountersAnswer {
    counters: Vec<CounterValue>,
}

#[derive(Deserialize)]
struct CounterValue {
    value: i64,
}

pub(super) async fn read_back(config: &Config, airports: &[Airport]) -> anyhow::Result<ReadBack> {
    let name = |airport: &Airport| CounterName {
        namespace: NAMESPACE,
        key: format!("departures:{}", airport.code),
    };
    let question = CountersQuery { counters: airports.iter().map(name).collect() };
    let http = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{}/v1/counters/query", config.reader.listen);
    let answer: CountersAnswer =
        tally_load::answer("the reader", http.post(url).json(&question)).await?;
    anyhow::ensure!(
        answer.counters.len() == airports.len(),
        "the reader answered {} counters",
        answer.counters.len()
    );
    let wrong = airports
        .iter()
        .zip(&answer.counters)
        .filter(|(airport, read)| airport.departures != read.value);
    Ok(ReadBack {
        asked: airports.len(),
        wrong: wrong
            .map(|(airport, read)| {
                format!(
                    "departures:{}: {} read, {} stored",
                    airport.code, read.value, airport.departures
                )
            })
            .collect(),
    })
}
