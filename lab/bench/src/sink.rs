//! Storing: a full `deltas` drained by a real sink, beside the same rows inserted bare, as their
//! batches have them.
//!
//! ```text
//!  tally load ──► increments ──► tally aggregator ──► deltas
//!                        measured, by its metric:       ├──► tally sink ───────► counts
//!                        yardstick, before and after:   └──► INSERT, no fence ─► bare_0, bare_1, …
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clickhouse::Client;
use tally_platform::store;
use tally_sink::{SETTINGS, TABLE_COLUMNS};
use tokio::task::JoinSet;

use super::blocks::{self, Block};
use super::drain::Drain;
use super::figures::{Figure, Unit};
use super::measure::{Meter, Usage, WatchedProcess, shares, total};
use super::rig::{Case, Rig};

const NAME: &str = "sink";
/// The machine's speed wanders: drains and yardsticks take turns, and each drain is held against
/// the ones before and after.
const ROUNDS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(120);

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
    let mut bare = vec![insert_bare(&client, &engine, "bare_0", &blocks).await?];
    let mut stored = Vec::new();
    let mut wrong = None;
    for round in 1..=ROUNDS {
        // Merges of what one of the two stored must not slow the other down.
        case.until_merged().await?;
        stored.push(drain(&case, &engine, rows).await?);
        wrong = wrong.or(case.verify(std::slice::from_ref(&sent)).await?.err());
        set_aside(&client, round).await?;
        case.until_merged().await?;
        bare.push(insert_bare(&client, &engine, &format!("bare_{round}"), &blocks).await?);
    }
    for number in 0..=ROUNDS {
        client.query_raw(&format!("DROP TABLE bare_{number} SYNC")).execute().await?;
    }

    let all = rows * ROUNDS as u64;
    let beside: Duration = bare.windows(2).map(|pair| (pair[0].took + pair[1].took) / 2).sum();
    let took: Duration = stored.iter().map(|stored| stored.took).sum();
    let seconds = |all: &[InsertRun]| {
        all.iter()
            .map(|one| format!("{:.1}", one.took.as_secs_f64()))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let used = total(stored.iter().map(|stored| &stored.used[..]));
    let figure = Figure::new(
        NAME,
        format!("{rows} rows in {batches} batches"),
        all as f64 / took.as_secs_f64(),
        Unit::RowsPerSecond,
    )
    .beside("the same rows, bare", all as f64 / beside.as_secs_f64())
    .cpu_us(used[0].micros_each(all))
    .peak_bytes(used[0].peak_bytes)
    .detail("CPU a row", shares(&used, all))
    .detail(
        "bare",
        format!(
            "CPU a row: {}",
            shares(&total(bare.iter().map(|bare| &bare.used[..])), rows * bare.len() as u64)
        ),
    )
    .detail("seconds", seconds(&stored))
    .detail("bare, before, between and after", seconds(&bare))
    .verified(wrong);
    Ok(vec![figure])
}

/// A real sink's way through all of `deltas`, into an empty table. Its start is left out: the first
/// block counts as the others.
async fn drain(case: &Case<'_>, engine: &WatchedProcess, rows: u64) -> anyhow::Result<InsertRun> {
    let sink = case.start("sink")?;
    let meter = Meter::start([sink.clone(), engine.clone()])?;
    let stored =
        Drain::watch(sink.pid, rows, async || case.metric("sink", "tally_sink_rows_total").await)
            .await?;
    let used = meter.read()?;
    case.stop("sink").await?;
    Ok(InsertRun {
        took: Duration::from_secs_f64(rows as f64 / stored.whole_but_start().per_second),
        used,
    })
}

/// Makes room for another drain of the same topic. What the last one stored stays, and is not
/// merged any more.
async fn set_aside(client: &Client, round: usize) -> anyhow::Result<()> {
    let (table, aside) = (store::COUNTS, format!("{}_{round}", store::COUNTS));
    for sql in [
        format!("RENAME TABLE {table} TO {aside}"),
        format!("SYSTEM STOP MERGES {aside}"),
        format!("CREATE TABLE {table} AS {aside}"),
    ] {
        client.query_raw(&sql).execute().await?;
    }
    Ok(())
}

/// What it took to have all blocks in the store.
struct InsertRun {
    took: Duration,
    used: Vec<Usage>,
}

/// Into a table of its own, whose merges stop after it, so that they are nobody's load. It is not
/// dropped yet: ext4 looks at each inode that was freed in the last minute before it gives one to a
/// new file, and a part is several.
async fn insert_bare(
    client: &Client,
    engine: &WatchedProcess,
    table: &str,
    blocks: &[Block],
) -> anyhow::Result<InsertRun> {
    client.query_raw(&format!("CREATE TABLE {table} AS {}", store::COUNTS)).execute().await?;
    let meter = Meter::start([engine.clone()])?;
    let begun = Instant::now();
    insert_all(client, table, blocks).await?;
    let bare = InsertRun { took: begun.elapsed(), used: meter.read()? };
    client.query_raw(&format!("SYSTEM STOP MERGES {table}")).execute().await?;
    Ok(bare)
}

/// Each partition's blocks one after the other, all partitions at once, as the sink does; but
/// neither fence nor token.
async fn insert_all(client: &Client, table: &str, blocks: &[Block]) -> anyhow::Result<()> {
    let mut by_partition: BTreeMap<i32, Vec<Bytes>> = BTreeMap::new();
    for block in blocks {
        by_partition.entry(block.partition).or_default().push(block.bytes.clone());
    }
    let mut tasks = JoinSet::new();
    for (partition, blocks) in by_partition {
        let client = client.clone();
        let sql = format!(
            "INSERT INTO {table} ({TABLE_COLUMNS}) SELECT {} FROM input('{}') FORMAT Native",
            tally_sink::table_values(partition),
            tally_sink::structure()
        );
        tasks.spawn(async move {
            for block in blocks {
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
    while let Some(inserted) = tasks.join_next().await {
        inserted??;
    }
    Ok(())
}
