//! The registry's ids of the schemas that the run was set up with.

use std::time::Duration;

use anyhow::ensure;
use apache_avro::Schema;
use serde::Deserialize;

use super::codec::{self, SchemaIds};

const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
struct Version {
    id: u32,
    schema: String,
}

pub(super) async fn sources(registry: &str) -> anyhow::Result<SchemaIds> {
    let increment = latest(registry, "increments-value", codec::INCREMENT).await?;
    let batch = latest(registry, "tally.IncrementBatch", codec::INCREMENT_BATCH).await?;
    Ok(SchemaIds { increment, batch })
}

pub(super) async fn deltas(registry: &str) -> anyhow::Result<u32> {
    latest(registry, "deltas-value", codec::DELTA_BATCH).await
}

/// The id of a subject's latest schema, which must be `expected`.
async fn latest(registry: &str, subject: &str, expected: &str) -> anyhow::Result<u32> {
    let url = format!("{}/subjects/{subject}/versions/latest", registry.trim_end_matches('/'));
    let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
    let answer = http.get(&url).send().await?.error_for_status()?;
    let Version { id, schema } = answer.json().await?;
    let is_ours = Schema::parse_str(&schema)? == Schema::parse_str(expected)?;
    ensure!(is_ours, "schema {id} at {url} is not the project's");
    Ok(id)
}
