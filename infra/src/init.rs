//! `tally init`: makes the topics, subjects and tables that the services need.
//!
//! Safe to repeat: what is there and agrees stays as it is. What is there and contradicts the
//! configuration is refused with the difference named, never changed. A table of an older format is
//! moved on.

mod subjects;
mod table_format;
mod tables;
mod topics;

use std::fmt;

use tally_platform::checkpoint_key::{CheckpointKey, KeyError};
use tally_platform::config::Config;
use tally_platform::registry;
use tally_platform::store::Unsupported;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("topic {topic}: {reason}")]
    Topic { topic: String, reason: String },
    #[error("the broker at {bootstrap}: {reason}")]
    Broker { bootstrap: String, reason: String },
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the store at {url}: {what}: {source}")]
    Store { url: String, what: &'static str, source: clickhouse::error::Error },
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error("table {table} is there with {have}, but the configuration says {want}{advice}")]
    TableContradicts { table: String, have: String, want: String, advice: String },
}

/// What `init` found or made, a line each.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<String>,
}

impl Report {
    fn add(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

pub async fn init(config: &Config) -> Result<Report, Error> {
    let mut report = Report::default();
    let has_deltas = topics::init(&config.kafka, &mut report).await?;
    subjects::init(config, has_deltas, &mut report).await?;
    tables::init(config, &mut report).await?;
    make_key(config, &mut report)?;
    Ok(report)
}

/// Makes the key that signs checkpoints, where one is configured and none is there.
fn make_key(config: &Config, report: &mut Report) -> Result<(), Error> {
    let Some(file) = &config.reconciler.key_file else { return Ok(()) };
    let told = file.display();
    if file.exists() {
        let key = CheckpointKey::read(file)?;
        report.add(format!("key file {told}: there, public key {}", key.public()));
    } else {
        let key = CheckpointKey::make(file)?;
        report.add(format!("key file {told}: made, public key {}", key.public()));
    }
    Ok(())
}
