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
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use self::client::Client;
use super::content::{LoadPlan, Route};
use super::live_record::LiveRecord;
use super::record::Record;
use super::registry;

pub(super) use self::client::MARK;

/// The shares of all increments.
const SINGLES: f64 = 0.10;
const REQUESTS: f64 = 0.15;
/// Messages a second.
const BAD: f64 = 3.0;

pub(crate) struct LoadOptions {
    pub(crate) seed: u64,
    /// Increments a second in all.
    pub(crate) rate: u64,
    pub(crate) bootstrap: String,
    pub(crate) registry: String,
    /// The base of each gateway's URLs.
    pub(crate) gateways: Vec<String>,
    /// Whether ids are used, and messages sent more than once.
    pub(crate) ids: bool,
}

pub(crate) struct Load {
    record: Arc<LiveRecord>,
    stop: CancellationToken,
    writers: Mutex<JoinSet<anyhow::Result<()>>>,
}

impl Load {
    /// Starts to write. The registry must have the schemas, and a broker must answer.
    pub(crate) async fn start(options: LoadOptions) -> anyhow::Result<Load> {
        let schemas = registry::sources(&options.registry).await?;
        let record = Arc::new(LiveRecord::new(LoadPlan::new(options.seed, options.ids, schemas)));
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        let rate = options.rate as f64;
        let shares = [
            (Route::Single, SINGLES * rate),
            (Route::Batch, (1.0 - SINGLES - REQUESTS) * rate),
            (Route::Bad, BAD),
        ];
        for (way, per_second) in shares {
            let client = Client::new(&options.bootstrap, Arc::clone(&record))?;
            let (client, partitions) =
                spawn_blocking(move || client.partitions().map(|count| (client, count))).await??;
            let record = Arc::clone(&record);
            let writer = direct::KafkaWriter { way, per_second, partitions, client, record };
            writers.spawn(writer.run(stop.clone()));
        }
        let (per_second, gateways) = (REQUESTS * rate, options.gateways);
        let writer = gateway::GatewayWriter { per_second, gateways, record: Arc::clone(&record) };
        writers.spawn(writer.run(stop.clone()));
        Ok(Load { record, stop, writers: Mutex::new(writers) })
    }

    /// What is known so far, for those who check while it runs.
    pub(crate) fn record(&self) -> &Arc<LiveRecord> {
        &self.record
    }

    /// Stops writing, waits until everything is settled or given up, and hands the record over.
    pub(crate) async fn stop(&self) -> anyhow::Result<Record> {
        self.stop.cancel();
        let mut writers = self.writers.lock().await;
        while let Some(ended) = writers.join_next().await {
            ended??;
        }
        let record = Arc::clone(&self.record);
        Ok(spawn_blocking(move || record.close()).await?)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
