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
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use self::client::{Client, EnqueueResult, Outgoing};
use super::content::{LoadPlan, POISON, Route};
use super::live_record::LiveRecord;
use super::record::{Record, State};
use super::registry;

pub(super) use self::client::MARK;

/// The shares of all increments.
const SINGLES: f64 = 0.10;
const REQUESTS: f64 = 0.15;
/// Messages a second.
const BAD: f64 = 3.0;
/// How poison is sent: compressed, and as one message however long.
const POISON_SETTINGS: [(&str, &str); 2] =
    [("compression.type", "zstd"), ("message.max.bytes", "400000000")];
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct LoadOptions {
    pub(crate) seed: u64,
    /// Increments a second in all.
    pub(crate) rate: u64,
    pub(crate) bootstrap: String,
    pub(crate) registry: String,
    /// Partitions of `increments` as it begins.
    pub(crate) partitions: i32,
    /// The base of each gateway's URLs.
    pub(crate) gateways: Vec<String>,
    /// Whether ids are used, and messages sent more than once.
    pub(crate) ids: bool,
}

pub(crate) struct Load {
    record: Arc<LiveRecord>,
    stop: CancellationToken,
    writers: Mutex<JoinSet<anyhow::Result<()>>>,
    /// None once the load has ended.
    poisoner: Mutex<Option<Client>>,
}

impl Load {
    /// Starts to write. The registry must have the schemas, and a broker must answer.
    pub(crate) async fn start(options: LoadOptions) -> anyhow::Result<Load> {
        let schemas = registry::sources(&options.registry).await?;
        let plan = LoadPlan::new(options.seed, options.ids, schemas);
        let record = Arc::new(LiveRecord::new(plan, options.partitions));
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        let rate = options.rate as f64;
        let shares = [
            (Route::Single, SINGLES * rate),
            (Route::Batch, (1.0 - SINGLES - REQUESTS) * rate),
            (Route::Bad, BAD),
        ];
        for (way, per_second) in shares {
            let client = Client::new(&options.bootstrap, &[], Arc::clone(&record))?;
            let (partitions, record) = (options.partitions, Arc::clone(&record));
            let writer = direct::KafkaWriter { way, per_second, partitions, client, record };
            writers.spawn(writer.run(stop.clone()));
        }
        let (per_second, gateways) = (REQUESTS * rate, options.gateways);
        let writer = gateway::GatewayWriter { per_second, gateways, record: Arc::clone(&record) };
        writers.spawn(writer.run(stop.clone()));
        let poisoner = Client::new(&options.bootstrap, &POISON_SETTINGS, Arc::clone(&record))?;
        let (writers, poisoner) = (Mutex::new(writers), Mutex::new(Some(poisoner)));
        Ok(Load { record, stop, writers, poisoner })
    }

    /// Sends a message that is huge once decompressed; whether it is in the log. It is waited for
    /// no longer than that.
    pub(crate) async fn poison(
        &self,
        pick: u32,
        partition: i32,
        patience: Duration,
    ) -> anyhow::Result<bool> {
        let (number, clock_ms) = (pick | POISON, self.record.clock_ms());
        let payload = self.record.plan.bad(number, clock_ms).payload;
        let mark = self.record.attempt(Route::Bad, number, clock_ms, None);
        let outgoing = Outgoing { mark, partition: Some(partition), payload: &payload };
        let deadline = Instant::now() + patience;
        while let Some(client) = &mut *self.poisoner.lock().await
            && client.send(outgoing).await? == EnqueueResult::Full
            && Instant::now() < deadline
        {
            tokio::time::sleep(LOOK).await;
        }
        while self.record.entry(mark).state == State::Attempted && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        Ok(self.record.entry(mark).state == State::Acknowledged)
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
        if let Some(poisoner) = self.poisoner.lock().await.take() {
            spawn_blocking(move || poisoner.finish()).await??;
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
