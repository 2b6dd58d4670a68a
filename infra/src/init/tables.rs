use tally_platform::config::Config;
use tally_platform::store::{self, COUNTERS, COUNTS};

use super::{Error, Report};

const COUNTS_SQL: &str = include_str!("../../sql/counts.sql");
const COUNTERS_SQL: &str = include_str!("../../sql/counters.sql");

pub(super) async fn init(config: &Config, report: &mut Report) -> Result<(), Error> {
    let database = &config.store.database;
    let failed = |what| move |source| Error::Store { url: config.store.url.clone(), what, source };
    let want = config.rules();
    let comment = store::rules_comment(&want);
    let fill = |sql: &str| sql.replace("{database}", database).replace("{comment}", &comment);
    // The database is not there yet, so the client must not ask for it.
    let client = store::client(&config.store).with_database("default");
    let create = format!("CREATE DATABASE IF NOT EXISTS {database}");
    client.query_raw(&create).execute().await.map_err(failed("make the database"))?;
    client.query_raw(&fill(COUNTS_SQL)).execute().await.map_err(failed("make the table counts"))?;
    client
        .query_raw(&fill(COUNTERS_SQL))
        .execute()
        .await
        .map_err(failed("make the view counters"))?;
    let have = store::rules(&store::client(&config.store))
        .await
        .map_err(failed("read the table's rules of counting"))?;
    if have != Some(want) {
        return Err(Error::TableContradicts {
            table: format!("{database}.{COUNTS}"),
            have: have
                .map_or_else(|| String::from("no rules of counting"), |have| have.to_string()),
            want: want.to_string(),
        });
    }
    report.add(format!("table {database}.{COUNTS}: there, {want}"));
    report.add(format!("view {database}.{COUNTERS}: there"));
    Ok(())
}
