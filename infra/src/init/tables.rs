use clickhouse::Client;
use tally_counts::{IdScope, Rules};
use tally_platform::config::Config;
use tally_platform::store::{self, COUNTERS, COUNTS, SupportError, TableRules};

use super::{Error, Report, table_format};

const COUNTS_SQL: &str = include_str!("../../sql/counts.sql");
const COUNTERS_SQL: &str = include_str!("../../sql/counters.sql");

pub(super) async fn init(config: &Config, report: &mut Report) -> Result<(), Error> {
    let database = &config.store.database;
    let failed = |what| move |source| Error::Store { url: config.store.url.clone(), what, source };
    // Before anything is made on one of several servers.
    check_support(config).await?;
    let want = TableRules { format: TableRules::FORMAT, rules: config.rules() };
    let comment = want.comment();
    let fill = |sql: &str| sql.replace("{database}", database).replace("{comment}", &comment);
    // The database is not there yet, so the client must not ask for it.
    let client = store::client(&config.store).with_database("default");
    execute(&client, &format!("CREATE DATABASE IF NOT EXISTS {database}"))
        .await
        .map_err(failed("make the database"))?;
    execute(&client, &fill(COUNTS_SQL)).await.map_err(failed("make the table counts"))?;
    // There are servers that make another engine of what they are told.
    check_support(config).await?;
    let client = store::client(&config.store);
    let have = store::rules(&client).await.map_err(failed("read the table's rules of counting"))?;
    let table = format!("{database}.{COUNTS}");
    let fits = |have: &TableRules| have.rules == want.rules && have.format <= want.format;
    let Some(have) = have.filter(fits) else {
        let have_rules = have.map(|have| have.rules);
        let have = have.map_or_else(
            || String::from("no rules of counting"),
            |have| format!("format={} {}", have.format, have.rules),
        );
        let advice = advice(have_rules, &want.rules);
        let want = format!("format={} {}", want.format, want.rules);
        return Err(Error::TableContradicts { table, have, want, advice });
    };
    if have.format < want.format {
        table_format::move_on(&client, &want)
            .await
            .map_err(failed("move the table counts on to sums of 128 bits"))?;
        report.add(format!("table {table}: moved on from format {} to 2", have.format));
    }
    execute(&client, &fill(COUNTERS_SQL)).await.map_err(failed("make the view counters"))?;
    report.add(format!("table {table}: there, {}", want.rules));
    report.add(format!("view {database}.{COUNTERS}: there"));
    Ok(())
}

async fn check_support(config: &Config) -> Result<(), Error> {
    store::check_support(&config.store).await.map_err(|error| match error {
        SupportError::Unsupported(unsupported) => unsupported.into(),
        SupportError::Store(source) => {
            let what = "ask which server it is";
            Error::Store { url: config.store.url.clone(), what, source }
        }
    })
}

/// What mends a contradiction, where it is of rules that older tables do not have.
fn advice(have: Option<Rules>, want: &Rules) -> String {
    let Some(have) = have else { return String::new() };
    let mut mended = *want;
    let mut keys = Vec::new();
    if have.ids_within == IdScope::Partition && want.ids_within != have.ids_within {
        mended.ids_within = have.ids_within;
        keys.push("duplicates.ids_within = \"partition\"");
    }
    if have.min_event_s == 0 && want.min_event_s != 0 {
        mended.min_event_s = 0;
        keys.push("counts.min_event_time = \"1970-01-01T00:00:00Z\"");
    }
    if keys.is_empty() || mended != have {
        return String::new();
    }
    format!(": to count on as before, set {}", keys.join(" and "))
}

pub(super) async fn execute(client: &Client, sql: &str) -> Result<(), clickhouse::error::Error> {
    client.query_raw(sql).execute().await
}
