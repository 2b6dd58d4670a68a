//! The audit of what really is there.

use anyhow::{Context, ensure};
use rdkafka::Message;
use tokio::task::spawn_blocking;

use super::codec;
use super::evidence::{Evidence, Rejection, Row};
use super::lag::{Lag, lags};
use super::load::MARK;
use super::record::Record;
use super::registry;
use super::store::Store;
use super::topics::{DELTAS, INCREMENTS, REJECTED, Topic, header};
use super::verdict::Audit;

/// Where Kafka, the schema registry and ClickHouse are, past every link.
pub(crate) struct Endpoints {
    pub(crate) bootstrap: String,
    /// The schema registry's URL, with the base path of its Confluent-compatible API.
    pub(crate) registry: String,
    pub(crate) store_url: String,
    pub(crate) database: String,
}

impl Endpoints {
    pub(super) fn store(&self) -> anyhow::Result<Store> {
        Store::new(&self.store_url, &self.database)
    }
}

/// Compares what Kafka and ClickHouse hold with the record, once nobody writes any more. What is
/// not stored is told apart from what is wrong.
///
/// An error means that nothing is known.
///
/// # Panics
/// On a runtime of one thread: the log is read in place.
pub(crate) async fn audit(record: &Record, endpoints: &Endpoints) -> anyhow::Result<Audit> {
    let deltas_schema = registry::deltas(&endpoints.registry).await?;
    let rows = endpoints.store()?.rows().await?;
    tokio::task::block_in_place(|| {
        let mut evidence = see_log(record, &endpoints.bootstrap, deltas_schema, &rows)?;
        rows.into_iter().for_each(|row| evidence.row(row));
        Ok(evidence.judge())
    })
}

fn see_log<'r>(
    record: &'r Record,
    bootstrap: &str,
    deltas_schema: u32,
    rows: &[Row],
) -> anyhow::Result<Evidence<'r>> {
    let increments = Topic::open(bootstrap, INCREMENTS)?;
    let extent = increments.extent()?;
    let partitions = extent.begins.len();
    let mut evidence = Evidence::new(record, &extent.begins, rows);
    increments.read(&extent, |message| {
        // A mark that is no number belongs to no entry of the record.
        let mark = header(message, MARK).map(|mark| mark.parse().unwrap_or(u32::MAX));
        let payload = message.payload().unwrap_or(&[]);
        evidence.message(message.partition(), message.offset(), mark, payload);
        Ok(())
    })?;

    let deltas = Topic::open(bootstrap, DELTAS)?;
    let extent = deltas.extent()?;
    ensure!(
        extent.begins.len() == partitions && extent.begins.iter().all(|begin| *begin == 0),
        "topic {DELTAS}: its partitions begin at {:?}, not {partitions} at 0",
        extent.begins
    );
    deltas.read(&extent, |message| {
        let batch = codec::read_deltas(deltas_schema, message.payload().unwrap_or(&[]));
        evidence.batch(message.partition(), message.offset(), &batch?);
        Ok(())
    })?;

    let rejected = Topic::open(bootstrap, REJECTED)?;
    rejected.read(&rejected.extent()?, |message| {
        evidence.rejection(rejection(message).context("it does not say what it is")?);
        Ok(())
    })?;
    Ok(evidence)
}

fn rejection(message: &rdkafka::message::BorrowedMessage<'_>) -> Option<Rejection> {
    Some(Rejection {
        partition: header(message, "tally.partition")?.parse().ok()?,
        offset: header(message, "tally.offset")?.parse().ok()?,
        reason: header(message, "tally.reason")?.to_owned(),
        payload: message.payload().unwrap_or(&[]).to_vec(),
    })
}

/// What ClickHouse lacks of `increments`, a line for each partition; none once it holds all.
pub(crate) async fn behind(endpoints: &Endpoints) -> anyhow::Result<Vec<String>> {
    let positions = endpoints.store()?.positions().await?;
    let bootstrap = endpoints.bootstrap.clone();
    let extent = spawn_blocking(move || Topic::open(&bootstrap, INCREMENTS)?.extent()).await??;
    let line = |Lag { partition, stored, end }| match stored {
        Some((sum, high)) => {
            format!("partition {partition}: stored up to {high} (sum {sum}), Kafka has {end}")
        }
        None => format!("partition {partition}: nothing stored, Kafka has {end}"),
    };
    Ok(lags(&positions, &extent).into_iter().map(line).collect())
}
