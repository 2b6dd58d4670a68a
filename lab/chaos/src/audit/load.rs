//! The load: clients that write while faults run.
//!
//! ```text
//!            ┌─► direct: singles ──┐
//!  LoadPlan ─────┼─► direct: batches ──┼──────────────► increments
//!  (seed)    ├─► direct: bad ──────┘                   ▲
//!            └─► gateway: requests ──► gateways ───────┘
//!                        │
//!                        └──► LiveRecord: attempted, then acknowledged, unknown or not applied
//! ```
//!
//! The writers do not wait for each other: a gateway that is down stops no producer.

mod client;
mod direct;
mod gateway;
mod pace;

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::client::Client;
use super::content::{LoadPlan, Route};
use super::error::Error;
use super::live_record::{LiveRecord, Progress};
use super::record::Record;
use super::registry;

pub(super) use self::client::MARK;

/// The shares of all increments.
const SINGLES: f64 = 0.10;
const REQUESTS: f64 = 0.15;
/// Messages a second.
const BAD: f64 = 3.0;

#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub seed: u64,
    /// Increments a second in all.
    pub rate: u64,
    pub bootstrap: String,
    /// The topic of increments.
    pub topic: String,
    pub registry: String,
    /// The base of each gateway's URLs. Without any, no requests are sent.
    pub gateways: Vec<String>,
    /// Whether ids are used, and messages sent more than once.
    pub ids: bool,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            seed: 0,
            rate: 10_000,
            bootstrap: String::from("127.0.0.1:9092"),
            topic: String::from("increments"),
            registry: String::from("http://127.0.0.1:8081/apis/ccompat/v7"),
            gateways: Vec::new(),
            ids: true,
        }
    }
}

/// The load as it runs.
pub struct Load {
    record: Arc<LiveRecord>,
    stop: CancellationToken,
    writers: Mutex<Option<JoinSet<Result<(), Error>>>>,
}

impl Load {
    /// Starts to write. The registry must have the schemas, and a broker must answer.
    pub async fn start(options: LoadOptions) -> Result<Load, Error> {
        let schemas = registry::sources(&options.registry, &options.topic).await?;
        let record = Arc::new(LiveRecord::new(LoadPlan::new(options.seed, options.ids, schemas)));
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        let rate = options.rate as f64;
        let requests = if options.gateways.is_empty() { 0.0 } else { REQUESTS };
        let shares = [
            (Route::Single, SINGLES * rate),
            (Route::Batch, (1.0 - SINGLES - requests) * rate),
            (Route::Bad, BAD),
        ];
        for (way, per_second) in shares {
            let client = Client::new(&options.bootstrap, &options.topic, Arc::clone(&record))?;
            let (client, partitions) =
                blocking(move || client.partitions().map(|count| (client, count))).await?;
            let writer = direct::KafkaWriter {
                way,
                per_second,
                partitions,
                client,
                record: Arc::clone(&record),
            };
            writers.spawn(writer.run(stop.clone()));
        }
        if requests > 0.0 {
            let (per_second, gateways) = (requests * rate, options.gateways);
            let writer =
                gateway::GatewayWriter { per_second, gateways, record: Arc::clone(&record) };
            writers.spawn(writer.run(stop.clone()));
        }
        Ok(Load { record, stop, writers: Mutex::new(Some(writers)) })
    }

    /// What is known so far, for those who check while it runs.
    pub fn record(&self) -> Arc<LiveRecord> {
        Arc::clone(&self.record)
    }

    pub fn progress(&self) -> Progress {
        self.record.progress()
    }

    /// The clock that events happen by jumps from where it is.
    pub fn step_clock(&self, ms: i64) {
        self.record.step_clock(ms);
    }

    /// Stops writing, waits until everything is settled or given up, and hands the record over.
    pub async fn stop(&self) -> Result<Record, Error> {
        let mut writers = self.writers.lock().await.take().ok_or(Error::Stopped)?;
        self.stop.cancel();
        while let Some(ended) = writers.join_next().await {
            ended.map_err(|error| Error::Task { task: "load", reason: error.to_string() })??;
        }
        let record = Arc::clone(&self.record);
        blocking(move || Ok(record.close())).await
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::Task { task: "load", reason: error.to_string() })?
}
