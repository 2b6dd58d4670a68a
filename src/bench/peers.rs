//! ClickHouse's own way from Kafka to sums, on the same topic: its Kafka engine, and a materialized view into a
//! SummingMergeTree. It counts at least once.

use clickhouse::Client;

use super::drain::Drain;
use super::figures::{Figure, Unit};
use super::measure::Meter;
use super::rig::{Case, Rig};

const NAME: &str = "peers";

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let case = Case::new(rig, NAME).await?;
    let increments = rig.size(4_000_000, 500_000);
    let sent = case.load(&format!("--batch 0 --count {increments}")).await?;
    let client = case.client();

    let aggregator = case.start("aggregator")?;
    let sink = case.start("sink")?;
    let meter = Meter::start([aggregator.clone(), sink, rig.part("store")?])?;
    let ours = Drain::watch(aggregator.pid, sent.messages, async || {
        for name in ["aggregator", "sink"] {
            case.check_runs(name)?;
        }
        Ok(case.stored().await?.iter().sum::<i64>().cast_unsigned())
    })
    .await?;
    let used = meter.read()?;
    for name in ["aggregator", "sink"] {
        case.stop(name).await?;
    }
    let wrong = case.verify(std::slice::from_ref(&sent)).await?.err();

    let engine = rig.part("store")?;
    create(&case, &client).await?;
    let theirs = Drain::watch(engine.pid, sent.messages, async || {
        Ok(client.query("SELECT toUInt64(sum(events)) FROM peer").fetch_one::<u64>().await?)
    })
    .await?;
    for sql in ["DROP TABLE peer_view SYNC", "DROP TABLE peer_queue SYNC"] {
        client.query_raw(sql).execute().await?;
    }

    // From the start to everything stored: a short drain has no steady middle.
    let per_second = |drain: &Drain| sent.increments as f64 / drain.times().1.as_secs_f64();
    Ok(vec![
        Figure::new(NAME, "singles, from the log to the store", per_second(&ours), Unit::IncrementsPerSecond)
            .beside("ClickHouse's Kafka engine", per_second(&theirs))
            .cpu_us(used.iter().map(|used| used.micros_each(sent.increments)).sum())
            .detail("ClickHouse's Kafka engine", format!("{:.2} µs of CPU each", theirs.steady().cpu_us))
            .detail("increments", sent.increments.to_string())
            .sound(wrong.is_none()),
    ])
}

async fn create(case: &Case<'_>, client: &Client) -> anyhow::Result<()> {
    let (kafka, registry) = (&case.config.kafka, &case.config.registry.url);
    let queue = format!(
        "CREATE TABLE peer_queue (namespace String, key String, delta Int64, at DateTime64(3), id Nullable(String)) \
         ENGINE = Kafka SETTINGS kafka_broker_list = '{}', kafka_topic_list = '{}', kafka_group_name = 'peer', \
         kafka_format = 'AvroConfluent', format_avro_schema_registry_url = '{registry}'",
        kafka.bootstrap, kafka.increments
    );
    let table = "CREATE TABLE peer (namespace LowCardinality(String), key String, bucket DateTime, sum Int64, events Int64) \
                 ENGINE = SummingMergeTree ORDER BY (namespace, key, bucket)";
    let view = "CREATE MATERIALIZED VIEW peer_view TO peer AS \
                SELECT namespace, key, toStartOfMinute(at) AS bucket, sum(delta) AS sum, toInt64(count()) AS events \
                FROM peer_queue GROUP BY namespace, key, bucket";
    for sql in [queue.as_str(), table, view] {
        client.query_raw(sql).execute().await?;
    }
    Ok(())
}
