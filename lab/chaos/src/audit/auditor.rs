//! The audit of what really is there.

use rdkafka::Message;

use super::codec;
use super::error::Error;
use super::evidence::{Evidence, Rejection};
use super::load::MARK;
use super::record::Record;
use super::registry;
use super::store::Store;
use super::topics::{Topic, header};
use super::verdict::Audit;

/// Where Kafka, the schema registry and ClickHouse are, past every link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    pub bootstrap: String,
    /// The schema registry's URL, with the base path of its Confluent-compatible API.
    pub registry: String,
    pub store_url: String,
    pub database: String,
    pub topics: Topics,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    pub increments: String,
    pub deltas: String,
    pub rejected: String,
}

impl Default for Topics {
    fn default() -> Topics {
        let [increments, deltas, rejected] =
            ["increments", "deltas", "increments.rejected"].map(str::to_owned);
        Topics { increments, deltas, rejected }
    }
}

/// Compares what Kafka and ClickHouse hold with the record, once nobody writes any more and
/// everything is stored.
///
/// An error means that nothing is known.
///
/// # Panics
/// On a runtime of one thread: the log is read in place.
pub async fn audit(record: &Record, endpoints: &Endpoints) -> Result<Audit, Error> {
    let deltas_schema = registry::deltas(&endpoints.registry, &endpoints.topics.deltas).await?;
    let store = Store { url: &endpoints.store_url, database: &endpoints.database };
    let rows = store.rows().await?;
    tokio::task::block_in_place(|| {
        let mut evidence = see_log(record, endpoints, deltas_schema)?;
        rows.into_iter().for_each(|row| evidence.row(row));
        Ok(evidence.judge())
    })
}

fn see_log<'r>(
    record: &'r Record,
    endpoints: &Endpoints,
    deltas_schema: u32,
) -> Result<Evidence<'r>, Error> {
    let topics = &endpoints.topics;
    let increments = Topic::open(&endpoints.bootstrap, &topics.increments)?;
    let extent = increments.extent()?;
    let partitions = extent.begins.len();
    let mut evidence = Evidence::new(record, &extent.begins);
    increments.read(&extent, |message| {
        // A mark that is no number belongs to no entry of the record.
        let mark = header(message, MARK).map(|mark| mark.parse().unwrap_or(u32::MAX));
        evidence.message(
            message.partition(),
            message.offset(),
            mark,
            message.payload().unwrap_or(&[]),
        );
        Ok(())
    })?;

    let deltas = Topic::open(&endpoints.bootstrap, &topics.deltas)?;
    let extent = deltas.extent()?;
    if extent.begins.len() != partitions || extent.begins.iter().any(|begin| *begin != 0) {
        let reason = format!("its partitions begin at {:?}, not {partitions} at 0", extent.begins);
        return Err(Error::Topic { topic: topics.deltas.clone(), reason });
    }
    deltas.read(&extent, |message| {
        let batch = codec::read_deltas(deltas_schema, message.payload().unwrap_or(&[])).map_err(
            |error| {
                let place = format!("{}:{}", message.partition(), message.offset());
                Error::Topic { topic: topics.deltas.clone(), reason: format!("{place}: {error}") }
            },
        )?;
        evidence.batch(message.partition(), message.offset(), &batch);
        Ok(())
    })?;

    let rejected = Topic::open(&endpoints.bootstrap, &topics.rejected)?;
    rejected.read(&rejected.extent()?, |message| {
        evidence.rejection(rejection(message).ok_or_else(|| Error::Topic {
            topic: topics.rejected.clone(),
            reason: format!("{}:{} does not say what it is", message.partition(), message.offset()),
        })?);
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
pub async fn behind(endpoints: &Endpoints) -> Result<Vec<String>, Error> {
    let store = Store { url: &endpoints.store_url, database: &endpoints.database };
    let positions = store.positions().await?;
    let (bootstrap, topic) = (endpoints.bootstrap.clone(), endpoints.topics.increments.clone());
    let extent =
        tokio::task::spawn_blocking(move || Topic::open(&bootstrap, &topic)?.extent()).await;
    let extent =
        extent.map_err(|error| Error::Task { task: "auditor", reason: error.to_string() })??;
    let mut behind = Vec::new();
    for (number, end) in
        extent.ends.iter().enumerate().filter(|(number, end)| **end > extent.begins[*number])
    {
        match positions.iter().find(|(partition, ..)| *partition == number) {
            Some((_, sum, high)) if sum == end && high == end => {}
            Some((_, sum, high)) => {
                behind.push(format!(
                    "partition {number}: stored up to {high} (sum {sum}), Kafka has {end}"
                ));
            }
            None => behind.push(format!("partition {number}: nothing stored, Kafka has {end}")),
        }
    }
    Ok(behind)
}
