//! ClickHouse's own way from Kafka to sums, on the same topic: its Kafka table engine, tuned as its
//! experts would, and a materialized view into a SummingMergeTree. It counts at least once.
//!
//! ```text
//!  increments ──► tally aggregator ──► deltas ──► tally sink ──► counts    measured
//!        └──────► Kafka table engine ──► materialized view ────► peer      yardstick
//! ```
//!
//! Both are limited by the machine's cores, so what is compared first is CPU for each increment.

use clickhouse::Client;
use indicatif::HumanCount;

use super::drain::Drain;
use super::figures::{Figure, Unit};
use super::measure::{Meter, Usage};
use super::rig::{Case, Rig};
use tally_load::Summary;

const NAME: &str = "peers";
/// Messages in a block of the Kafka table engine, and in one poll of it. Larger blocks make fewer
/// parts, which is less to merge.
const BLOCK_MESSAGES: u64 = 1_048_576;

/// How increments come: the columns that the Kafka table engine reads, and where the view finds
/// increments in them.
struct MessageFormat {
    name: &'static str,
    case: &'static str,
    load: String,
    columns: &'static str,
    source: &'static str,
}

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let singles = rig.size(30_000_000, 500_000);
    let batches = rig.size(150_000_000, 5_000_000);
    let singles = MessageFormat {
        name: "singles",
        case: "peers.singles",
        load: format!("--batch 0 --count {singles}"),
        columns: "namespace String, key String, delta Int64, at DateTime64(3), \
                  id Nullable(String)",
        source: "peer_queue",
    };
    let batches = MessageFormat {
        name: "batches of 500",
        case: "peers.batches",
        load: format!("--count {batches}"),
        columns: "increments Array(Tuple(namespace String, key String, delta Int64, \
                  at DateTime64(3), id Nullable(String)))",
        source: "(SELECT increment.1 AS namespace, increment.2 AS key, increment.3 AS delta, \
                 increment.4 AS at FROM peer_queue ARRAY JOIN increments AS increment)",
    };
    Ok(vec![compare(rig, &singles).await?, compare(rig, &batches).await?])
}

async fn compare(rig: &Rig, format: &MessageFormat) -> anyhow::Result<Figure> {
    let case = Case::new(rig, format.case).await?;
    let sent = case.load(&format.load).await?;
    let (ours, our_use) = drain_ours(&case, &sent).await?;
    let mut wrong = case.verify(std::slice::from_ref(&sent)).await?.err();
    // Merges of our parts are not the peer's work.
    case.until_merged().await?;
    let consumers = std::thread::available_parallelism()?.get();
    let settings = engine_settings(consumers);
    let (theirs, their_use) = drain_theirs(&case, &sent, format, &settings).await?;
    if let Err(reason) = same(&case.client(), &sent).await {
        wrong.get_or_insert(reason.to_string());
    }

    // From the start to everything stored: a short drain has no steady middle.
    let per_second = |drain: &Drain| sent.increments as f64 / drain.times().1.as_secs_f64();
    let cpu_us = |uses: &[Usage]| uses.iter().map(|used| used.micros_each(sent.increments)).sum();
    let yardstick = format!(
        "ClickHouse's Kafka engine: {consumers} consumers, a thread each, blocks of {} messages",
        HumanCount(BLOCK_MESSAGES)
    );
    let name = format!("{}, from Kafka to ClickHouse", format.name);
    Ok(Figure::new(NAME, name, per_second(&ours), Unit::IncrementsPerSecond)
        .beside(yardstick, per_second(&theirs))
        .cpu_us(cpu_us(&our_use))
        .beside_cpu_us(cpu_us(&their_use))
        .detail("settings of ClickHouse's Kafka engine", settings)
        .detail("increments", sent.increments.to_string())
        .verified(wrong))
}

async fn drain_ours(case: &Case<'_>, sent: &Summary) -> anyhow::Result<(Drain, Vec<Usage>)> {
    let aggregator = case.start("aggregator")?;
    let sink = case.start("sink")?;
    let meter = Meter::start([aggregator.clone(), sink, case.rig.part("store")?])?;
    let drain = Drain::watch(aggregator.pid, sent.increments, async || {
        case.check_runs("aggregator")?;
        case.metric("sink", "tally_sink_increments_total").await
    })
    .await?;
    let used = meter.read()?;
    for name in ["aggregator", "sink"] {
        case.stop(name).await?;
    }
    Ok((drain, used))
}

async fn drain_theirs(
    case: &Case<'_>,
    sent: &Summary,
    format: &MessageFormat,
    settings: &str,
) -> anyhow::Result<(Drain, Vec<Usage>)> {
    let client = case.client();
    let clickhouse = case.rig.part("store")?;
    let meter = Meter::start([clickhouse.clone()])?;
    create(case, &client, format, settings).await?;
    let drain = Drain::watch(clickhouse.pid, sent.increments, async || {
        Ok(client.query("SELECT toUInt64(sum(events)) FROM peer").fetch_one::<u64>().await?)
    })
    .await?;
    let used = meter.read()?;
    for sql in ["DROP TABLE peer_view SYNC", "DROP TABLE peer_queue SYNC"] {
        client.query_raw(sql).execute().await?;
    }
    Ok((drain, used))
}

/// The peer did the same work: its sums come to what was sent.
async fn same(client: &Client, sent: &Summary) -> anyhow::Result<()> {
    let total = client.query("SELECT sum(sum) FROM peer").fetch_one::<i64>().await?;
    anyhow::ensure!(
        total == sent.total,
        "the peer's sums come to {total}, what was sent to {}",
        sent.total
    );
    Ok(())
}

/// A consumer a core, each with a thread that stores its own blocks. By default there is one
/// consumer, and a poll takes 65,409 messages.
fn engine_settings(consumers: usize) -> String {
    format!(
        "kafka_num_consumers = {consumers}, kafka_thread_per_consumer = 1, \
         kafka_max_block_size = {BLOCK_MESSAGES}, kafka_poll_max_batch_size = {BLOCK_MESSAGES}"
    )
}

async fn create(
    case: &Case<'_>,
    client: &Client,
    format: &MessageFormat,
    settings: &str,
) -> anyhow::Result<()> {
    let (kafka, registry) = (&case.config.kafka, &case.config.registry.url);
    let MessageFormat { columns, source, .. } = format;
    let queue = format!(
        "CREATE TABLE peer_queue ({columns}) ENGINE = Kafka SETTINGS \
         kafka_broker_list = '{}', kafka_topic_list = '{}', kafka_group_name = '{}', \
         kafka_format = 'AvroConfluent', format_avro_schema_registry_url = '{registry}', \
         {settings}",
        kafka.bootstrap, kafka.increments, format.case
    );
    let table = "CREATE TABLE peer (namespace LowCardinality(String), key String, \
                 bucket DateTime, sum Int64, events Int64) \
                 ENGINE = SummingMergeTree ORDER BY (namespace, key, bucket)";
    let view = format!(
        "CREATE MATERIALIZED VIEW peer_view TO peer AS \
         SELECT namespace, key, toStartOfMinute(at) AS bucket, sum(delta) AS sum, \
         toInt64(count()) AS events FROM {source} GROUP BY namespace, key, bucket"
    );
    for sql in [queue.as_str(), table, view.as_str()] {
        client.query_raw(sql).execute().await?;
    }
    Ok(())
}
