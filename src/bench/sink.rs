//! Storing: a full `deltas` drained by a real sink, beside the same blocks inserted bare.
//!
//! ```text
//!  tally load ──► increments ──► tally aggregator ──► deltas ──► tally sink ──► counts      measured, by its metric
//!                                                          └──► INSERT, no fence ──► bare   yardstick, before and after: the faster one
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clickhouse::Client;
use tally_service::store;
use tally_sink::SETTINGS;
use tally_sink::block::COLUMNS;
use tokio::task::JoinSet;

use super::blocks::{self, Block};
use super::drain::Drain;
use super::figures::{Figure, Unit};
use super::measure::{Meter, Used, Watched, shares};
use super::rig::{Case, Rig};

const NAME: &str = "sink";
const TIMEOUT: Duration = Duration::from_secs(120);
/// Merges of what one of the two stored must not slow the other down.
const MERGES_PATIENCE: Duration = Duration::from_secs(120);

/// What the yardstick does without: tokens are not looked at.
const NO_DEDUPLICATION: [(&str, &str); 2] =
    [("insert_deduplicate", "0"), ("deduplicate_insert_select", "disable")];

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let case = Case::new(rig, "sink").await?;
    let increments = rig.size(48_000_000, 2_000_000);
    let sent = case.load(&format!("--distribution uniform --count {increments}")).await?;
    let aggregator = case.start("aggregator")?;
    case.aggregated(&aggregator, sent.messages).await?;
    case.stop("aggregator").await?;
    let blocks = tokio::task::block_in_place(|| blocks::read(&case.log))?;
    let rows: u64 = blocks.iter().map(|block| block.rows).sum();
    let batches = blocks.len();

    let engine = rig.part("store")?;
    let client = case.client();
    let before = insert_bare(&client, &engine, "bare_before", &blocks).await?;
    until_merged(&client).await?;
    let sink = case.start("sink")?;
    let meter = Meter::start([sink.clone(), engine.clone()])?;
    let stored =
        Drain::watch(sink.pid, rows, async || case.metric("sink", "tally_sink_rows_total").await).await?;
    let used = meter.read()?;
    case.stop("sink").await?;
    let wrong = case.verify(std::slice::from_ref(&sent)).await?.err();

    until_merged(&client).await?;
    let after = insert_bare(&client, &engine, "bare_after", &blocks).await?;
    for table in ["bare_before", "bare_after"] {
        client.query_raw(&format!("DROP TABLE {table} SYNC")).execute().await?;
    }
    let bare = if before.took < after.took { &before } else { &after };

    let (first, whole) = stored.times();
    let steady = stored.steady();
    // Whole against whole, but for the sink's start: both count every block.
    let per_second = rows as f64 / (whole - first).as_secs_f64().max(1e-9);
    let mut figure = Figure::new(
        NAME,
        format!("{rows} rows in {batches} batches"),
        steady.per_second,
        Unit::RowsPerSecond,
    )
    .beside("the same blocks, bare", rows as f64 / bare.took.as_secs_f64())
    .cpu_us(steady.cpu_us)
    .peak_bytes(used[0].peak_bytes)
    .detail(
        "all of it",
        format!("{:.1} s, {} rows/s from the first block", whole.as_secs_f64(), per_second as u64),
    )
    .detail("CPU a row", shares(&used, rows))
    .detail("bare", format!("CPU a row: {}", shares(&bare.used, rows)))
    .detail(
        "bare, before and after",
        [&before, &after].map(|bare| format!("{:.1} s", bare.took.as_secs_f64())).join(", "),
    )
    .sound(wrong.is_none());
    if let Some(wrong) = wrong {
        figure = figure.detail("wrong", wrong);
    }
    Ok(vec![figure])
}

/// What it took to insert the blocks bare.
struct Bare {
    took: Duration,
    used: Vec<Used>,
}

/// Into a table of its own, whose merges stop after it, so that they are nobody's load. It is not dropped yet: ext4 looks at
/// each inode that was freed in the last minute before it gives one to a new file, and a part is some thirty files.
async fn insert_bare(
    client: &Client,
    engine: &Watched,
    table: &str,
    blocks: &[Block],
) -> anyhow::Result<Bare> {
    client.query_raw(&format!("CREATE TABLE {table} AS {}", store::COUNTS)).execute().await?;
    let meter = Meter::start([engine.clone()])?;
    let begun = Instant::now();
    insert_all(client, table, blocks).await?;
    let bare = Bare { took: begun.elapsed(), used: meter.read()? };
    client.query_raw(&format!("SYSTEM STOP MERGES {table}")).execute().await?;
    Ok(bare)
}

/// Each partition's blocks one after the other, all partitions at once, as the sink does; but neither fence nor token.
async fn insert_all(client: &Client, table: &str, blocks: &[Block]) -> anyhow::Result<()> {
    let columns = COLUMNS.map(|(name, _)| name).join(", ");
    let mut lanes: BTreeMap<i32, Vec<Bytes>> = BTreeMap::new();
    for block in blocks {
        lanes.entry(block.partition).or_default().push(block.bytes.clone());
    }
    let mut tasks = JoinSet::new();
    for (partition, lane) in lanes {
        let client = client.clone();
        let sql = format!(
            "INSERT INTO {table} (partition, {columns}) SELECT toUInt32({partition}), {columns} FROM input('{}') FORMAT Native",
            tally_sink::structure()
        );
        tasks.spawn(async move {
            for block in lane {
                let mut insert =
                    client.insert_formatted_with(&*sql).with_timeouts(Some(TIMEOUT), Some(TIMEOUT));
                for (name, value) in SETTINGS.into_iter().chain(NO_DEDUPLICATION) {
                    insert = insert.with_setting(name, value);
                }
                insert.send(block).await?;
                insert.end().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(lane) = tasks.join_next().await {
        lane??;
    }
    Ok(())
}

async fn until_merged(client: &Client) -> anyhow::Result<()> {
    let begun = Instant::now();
    while client.query("SELECT count() FROM system.merges").fetch_one::<u64>().await? > 0 {
        anyhow::ensure!(begun.elapsed() < MERGES_PATIENCE, "still merging after {MERGES_PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
