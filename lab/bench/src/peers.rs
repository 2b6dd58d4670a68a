//! ClickHouse's own way from Kafka to sums, on the same topic: its Kafka engine, and a materialized
//! view into a SummingMergeTree. It counts at least once.

use clickhouse::Client;

use super::drain::Drain;
use super::figures::{Figure, Unit};
use super::measure::Meter;
use super::rig::{Case, Rig};
use tally_load::Summary;

const NAME: &str = "peers";

/// How increments come: the columns that the Kafka engine reads, and where the view finds
/// increments in them.
struct Shape {
    name: &'static str,
    case: &'static str,
    load: String,
    columns: &'static str,
    source: &'static str,
}

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let singles = rig.size(30_000_000, 500_000);
    let batches = rig.size(150_000_000, 5_000_000);
    Ok(vec![
        compare(
            rig,
            &Shape {
                name: "singles",
                case: "peers.singles",
                load: format!("--batch 0 --count {singles}"),
                columns: "namespace String, key String, delta Int64, at DateTime64(3), id Nullable(String)",
                source: "peer_queue",
            },
        )
        .await?,
        compare(
            rig,
            &Shape {
                name: "batches of 500",
                case: "peers.batches",
                load: format!("--count {batches}"),
                columns: "increments Array(Tuple(namespace String, key String, delta Int64, at DateTime64(3), \
                          id Nullable(String)))",
                source: "(SELECT increment.1 AS namespace, increment.2 AS key, increment.3 AS delta, increment.4 AS at \
                         FROM peer_queue ARRAY JOIN increments AS increment)",
            },
        )
        .await?,
    ])
}

async fn compare(rig: &Rig, shape: &Shape) -> anyhow::Result<Figure> {
    let case = Case::new(rig, shape.case).await?;
    let sent = case.load(&shape.load).await?;
    let client = case.client();

    let aggregator = case.start("aggregator")?;
    let sink = case.start("sink")?;
    let meter = Meter::start([aggregator.clone(), sink, rig.part("store")?])?;
    let ours = Drain::watch(aggregator.pid, sent.increments, async || {
        case.check_runs("aggregator")?;
        case.metric("sink", "tally_sink_increments_total").await
    })
    .await?;
    let used = meter.read()?;
    for name in ["aggregator", "sink"] {
        case.stop(name).await?;
    }
    let mut wrong = case.verify(std::slice::from_ref(&sent)).await?.err();

    let engine = rig.part("store")?;
    create(&case, &client, shape).await?;
    let theirs = Drain::watch(engine.pid, sent.increments, async || {
        Ok(client.query("SELECT toUInt64(sum(events)) FROM peer").fetch_one::<u64>().await?)
    })
    .await?;
    if let Err(reason) = same(&client, &sent).await {
        wrong.get_or_insert(reason.to_string());
    }
    for sql in ["DROP TABLE peer_view SYNC", "DROP TABLE peer_queue SYNC"] {
        client.query_raw(sql).execute().await?;
    }

    // From the start to everything stored: a short drain has no steady middle.
    let per_second = |drain: &Drain| sent.increments as f64 / drain.times().1.as_secs_f64();
    let mut figure = Figure::new(
        NAME,
        format!("{}, from the log to the store", shape.name),
        per_second(&ours),
        Unit::IncrementsPerSecond,
    )
    .beside("ClickHouse's Kafka engine", per_second(&theirs))
    .cpu_us(used.iter().map(|used| used.micros_each(sent.increments)).sum())
    .detail("ClickHouse's Kafka engine", format!("{:.2} µs of CPU each", theirs.steady().cpu_us))
    .detail("increments", sent.increments.to_string())
    .sound(wrong.is_none());
    if let Some(wrong) = wrong {
        figure = figure.detail("wrong", wrong);
    }
    Ok(figure)
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

async fn create(case: &Case<'_>, client: &Client, shape: &Shape) -> anyhow::Result<()> {
    let (kafka, registry) = (&case.config.kafka, &case.config.registry.url);
    let Shape { columns, source, .. } = shape;
    let queue = format!(
        "CREATE TABLE peer_queue ({columns}) \
         ENGINE = Kafka SETTINGS kafka_broker_list = '{}', kafka_topic_list = '{}', kafka_group_name = '{}', \
         kafka_format = 'AvroConfluent', format_avro_schema_registry_url = '{registry}'",
        kafka.bootstrap, kafka.increments, shape.case
    );
    let table = "CREATE TABLE peer (namespace LowCardinality(String), key String, bucket DateTime, sum Int64, events Int64) \
                 ENGINE = SummingMergeTree ORDER BY (namespace, key, bucket)";
    let view = format!(
        "CREATE MATERIALIZED VIEW peer_view TO peer AS \
         SELECT namespace, key, toStartOfMinute(at) AS bucket, sum(delta) AS sum, toInt64(count()) AS events \
         FROM {source} GROUP BY namespace, key, bucket"
    );
    for sql in [queue.as_str(), table, view.as_str()] {
        client.query_raw(sql).execute().await?;
    }
    Ok(())
}
