//! The registry's ids of the schemas that the run was set up with.

use std::time::Duration;

use apache_avro::Schema;
use serde::Deserialize;

use super::codec::{self, SchemaIds};
use super::error::Error;

const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
struct Version {
    id: u32,
    schema: String,
}

pub(super) async fn sources(registry: &str, topic: &str) -> Result<SchemaIds, Error> {
    let increment = latest(registry, &format!("{topic}-value"), codec::INCREMENT).await?;
    let batch = latest(registry, "tally.IncrementBatch", codec::INCREMENT_BATCH).await?;
    Ok(SchemaIds { increment, batch })
}

pub(super) async fn deltas(registry: &str, topic: &str) -> Result<u32, Error> {
    latest(registry, &format!("{topic}-value"), codec::DELTA_BATCH).await
}

/// The id of a subject's latest schema, which must be `expected`.
async fn latest(registry: &str, subject: &str, expected: &str) -> Result<u32, Error> {
    let url = format!("{}/subjects/{subject}/versions/latest", registry.trim_end_matches('/'));
    let told = |reason: String| Error::Registry { url: url.clone(), reason };
    let answer = async {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        http.get(&url).send().await?.error_for_status()?.json::<Version>().await
    };
    let version = answer.await.map_err(|error| told(error.to_string()))?;
    let parse = |text| Schema::parse_str(text).map_err(|error| told(error.to_string()));
    if parse(&version.schema)? != parse(expected)? {
        return Err(told(format!("schema {} is not the project's", version.id)));
    }
    Ok(version.id)
}
