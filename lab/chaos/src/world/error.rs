use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{} is there and is not what an earlier run left: choose another folder, or remove it",
        .0.display()
    )]
    NotOurs(PathBuf),
    #[error("no port is free from {first} up to {last}")]
    NoPort { first: u16, last: u16 },
    #[error("{name} was away, and something else has taken its port {address} meanwhile: {source}")]
    PortTaken { name: String, address: SocketAddr, source: io::Error },
    #[error("listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Artifact(#[from] tally_stack::artifacts::Error),
    #[error(transparent)]
    Prepare(#[from] tally_stack::Error),
    #[error("the thread that starts processes: {0}")]
    Spawner(io::Error),
    #[error("start {name}: {source}")]
    Start { name: String, source: io::Error },
    #[error("{action} {name}: {source}")]
    Process { action: &'static str, name: String, source: io::Error },
    #[error("start {name}: it runs already")]
    Runs { name: String },
    #[error("{action} {name}: it does not run")]
    Gone { action: &'static str, name: String },
    #[error("{name} still runs {patience:?} after it was told to end")]
    Lingers { name: String, patience: Duration },
    #[error("{name} ended ({status}) before it answered: {last_words}")]
    Died { name: String, status: ExitStatus, last_words: String },
    #[error("{name} has not answered within {patience:?}: {reason}")]
    Silent { name: String, patience: Duration, reason: String },
    #[error("make an HTTP client: {0}")]
    Http(reqwest::Error),
    #[error("{name} does not tell its metrics: {reason}")]
    Metrics { name: String, reason: String },
    #[error("ask the brokers for {what}: {source}")]
    Metadata { what: String, source: rdkafka::error::KafkaError },
    #[error("topic {topic} is not there")]
    NoTopic { topic: String },
    #[error("partition {partition} of {topic} has no leader")]
    NoLeader { topic: String, partition: i32 },
    #[error("the store refuses {query:?}: {source}")]
    Query { query: String, source: clickhouse::error::Error },
    #[error("`tally {command}` failed ({status}): {said}")]
    Command { command: String, status: ExitStatus, said: String },
}

impl Error {
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::File { action, path: path.to_owned(), source }
    }
}
