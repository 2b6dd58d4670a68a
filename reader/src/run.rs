use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use tally_platform::config::Config;
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::health::{Condition, Health};
use tally_platform::http as edge;
use tally_platform::quiet_log::QuietLog;
use tally_platform::registry;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::counter_memory::Broken;
use crate::http::{self, Api};
use crate::metrics::Metrics;
use crate::reads::Reads;
use crate::shared_memory::SharedMemory;
use crate::starting_point::{StartingPoint, bounds, starting_point};
use crate::store::Store;
use crate::vector::number;
use crate::{misses, tail, verified};

const CLIENT_ID: &str = "tally-reader";

/// The tail beats at least every few hundred milliseconds, whatever it waits for.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// How often the store's positions are read, so that the window can let go of what is stored.
const LEDGER_INTERVAL: Duration = Duration::from_secs(1);

/// How often the log is looked at, for the lag.
const LAG_INTERVAL: Duration = Duration::from_secs(5);

/// How long requests in progress may take after shutdown has begun, beyond the wait for a position.
const DRAIN_MARGIN: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reader.cached_counters must not be 0")]
    NoCache,
    #[error(transparent)]
    Bind(#[from] edge::BindError),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("make a Kafka consumer")]
    Client(#[source] KafkaError),
    #[error("read deltas from where ClickHouse is")]
    Assign(#[source] KafkaError),
}

/// Answers reads until `shutdown`, then finishes those in progress.
pub async fn run(
    config: &Config,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let signs = Signs::new(&health);
    let cached = NonZeroUsize::new(config.reader.cached_counters).ok_or(Error::NoCache)?;
    let listener = edge::bind(config.reader.listen, "reads").await?;
    let consumer = tally_kafka::consumer(&config.kafka.cluster(), CLIENT_ID, CLIENT_ID)
        .create()
        .map_err(Error::Client)?;
    let batches = DeltaBatches::new(&config.registry)?;
    let metrics = Metrics::new();
    let api = Arc::new(Api::new(metrics.clone()));
    if let Ok(addr) = listener.local_addr() {
        let url = format!("http://{addr}/v1/counters/{{namespace}}/{{key}}");
        tracing::info!(%addr, "counters are read at {url}");
    }

    let stop = shutdown.child_token();
    let drained = CancellationToken::new();
    let serving = async {
        let drain_limit = Duration::from_millis(config.reader.max_wait_ms) + DRAIN_MARGIN;
        let cut_off = async {
            tokio::time::sleep(drain_limit).await;
            tracing::warn!(?drain_limit, "requests are still in progress and are cut off");
        };
        let server = http::server(Arc::clone(&api), config.reader.max_connections);
        server.serve(listener, &stop, cut_off).await;
        drained.cancel();
    };
    let working = async {
        let consumer = Arc::new(consumer);
        let worker = Worker { config, consumer, batches, metrics, signs };
        let worked = worker.work(cached, &api, &drained).await;
        stop.cancel();
        worked
    };
    let ((), worked) = tokio::join!(serving, working);
    worked?;
    tracing::info!("drained");
    Ok(())
}

/// Readiness, condition by condition.
struct Signs {
    health: Health,
    /// The store's positions are known, and the log is read from there.
    start: Condition,
    /// Every batch so far followed the one before it.
    chain: Condition,
    /// The log answers.
    log: Condition,
}

impl Signs {
    fn new(health: &Health) -> Signs {
        let (start, chain) = (health.condition("start"), health.condition("chain"));
        Signs { health: health.clone(), start, chain, log: health.condition("log") }
    }
}

/// Everything that goes on beside the requests.
struct Worker<'a> {
    config: &'a Config,
    consumer: Arc<BaseConsumer>,
    batches: DeltaBatches,
    metrics: Metrics,
    signs: Signs,
}

impl Worker<'_> {
    async fn work(
        self,
        cached: NonZeroUsize,
        api: &Api,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let begun =
            starting_point(self.config, &self.consumer, &self.metrics, &self.signs.start, stop)
                .await;
        let Some(StartingPoint { store, vector, offsets }) = begun else { return Ok(()) };
        tracing::info!(
            position = %vector.position(),
            partitions = vector.partitions(),
            "deltas is read from where ClickHouse is"
        );

        let reader = &self.config.reader;
        let partitions = vector.partitions();
        let state = Arc::new(SharedMemory::new(vector, cached, reader.unstored_bytes));
        let offsets = match offsets {
            Ok(offsets) => {
                tail::assign(&self.consumer, &self.config.kafka.deltas, &offsets)
                    .map_err(Error::Assign)?;
                self.signs.chain.set(true, "");
                Some(offsets)
            }
            Err(broken) => {
                self.break_off(&state, broken);
                None
            }
        };
        let (misses, jobs) = misses::queue();
        let max_wait = Duration::from_millis(reader.max_wait_ms);
        api.open(Reads::new(
            Arc::clone(&state),
            store.clone(),
            misses,
            max_wait,
            self.metrics.clone(),
        ));
        self.signs.start.set(true, "");

        let tailing = async {
            if offsets.is_some() {
                self.tail(&state, stop).await;
            }
        };
        tokio::join!(
            tailing,
            misses::serve(&state, &store, jobs, stop),
            self.follow_store(&state, &store, stop),
            self.follow_log(&state, stop),
            verified::follow(&self.config.kafka, number(partitions), &api.verified, stop),
        );
        Ok(())
    }

    async fn tail(&self, state: &Arc<SharedMemory>, stop: &CancellationToken) {
        let (consumer, tailed, stopped) =
            (Arc::clone(&self.consumer), Arc::clone(state), stop.clone());
        let heartbeat = self.signs.health.heartbeat("tail", MAX_SILENCE);
        let (batches, runtime) = (self.batches.clone(), Handle::current());
        let tail = move || tail::run(&consumer, &batches, &runtime, &tailed, &heartbeat, &stopped);
        let ended = tokio::task::spawn_blocking(tail).await.expect("the tail does not panic");
        if let Err(broken) = ended {
            self.break_off(state, broken);
        }
    }

    fn break_off(&self, state: &SharedMemory, broken: Broken) {
        tracing::error!(error = %broken, "no read is answered from now on");
        self.signs.chain.set(false, broken.to_string());
        state.break_off(Arc::new(broken));
    }

    async fn follow_store(&self, state: &SharedMemory, store: &Store, stop: &CancellationToken) {
        let mut log = QuietLog::once();
        while stop.run_until_cancelled(tokio::time::sleep(LEDGER_INTERVAL)).await.is_some() {
            let Some(read) = stop.run_until_cancelled(store.vector()).await else { return };
            if let Ok(vector) = &read {
                state.learn(vector);
            }
            tell(&mut log, "ClickHouse", read.as_ref().err().map(|error| error as _));
            let holding = state.holding();
            self.metrics.holds(holding.entries, holding.unstored_bytes);
        }
    }

    async fn follow_log(&self, state: &SharedMemory, stop: &CancellationToken) {
        let mut log = QuietLog::once();
        loop {
            let bounds = bounds(&self.consumer, &self.config.kafka.deltas, state.partitions());
            let Some(asked) = stop.run_until_cancelled(bounds).await else { return };
            match &asked {
                Ok(bounds) => {
                    self.signs.log.set(true, "");
                    for (partition, (_, high)) in bounds.iter().enumerate() {
                        self.metrics.tail_lag(
                            number(partition),
                            (high - state.tail(partition).deltas).max(0),
                        );
                    }
                }
                Err(error) => self.signs.log.set(false, error.to_string()),
            }
            tell(&mut log, "Kafka", asked.as_ref().err().map(|error| error as _));
            if stop.run_until_cancelled(tokio::time::sleep(LAG_INTERVAL)).await.is_none() {
                return;
            }
        }
    }
}

pub(crate) fn tell(log: &mut QuietLog, server: &str, error: Option<&dyn std::error::Error>) {
    match error {
        Some(error) if log.failed(Instant::now()).is_some() => {
            tracing::warn!(%error, "{server} does not answer; asking again");
        }
        Some(_) => {}
        None => {
            if let Some(failures) = log.succeeded() {
                tracing::info!(failures, "{server} answers again");
            }
        }
    }
}
