use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use tally_kafka::{ErrorsByPoll, TopicError};
use tally_platform::config::Config;
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::health::{Condition, Health};
use tally_platform::http as edge;
use tally_platform::quiet_log::QuietLog;
use tally_platform::registry;
use tally_platform::store::UnknownPartitions;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::cache::CacheLimits;
use crate::counter_memory::{Broken, Unreadable};
use crate::http::{self, Api};
use crate::inquiry::Inquiry;
use crate::metrics::Metrics;
use crate::reads::Reads;
use crate::shared_memory::SharedMemory;
use crate::standstills::Standstills;
use crate::starting_point::{StartingPoint, bounds, partitions, starting_point};
use crate::store::Store;
use crate::tail::{News, Questions, Tail};
use crate::vector::{Vector, number};
use crate::{misses, tail, verified};

const CLIENT_ID: &str = "tally-reader";

/// The tail beats at least every few hundred milliseconds, whatever it waits for.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// How often the store's positions are read, so that the window can let go of what is stored.
const LEDGER_INTERVAL: Duration = Duration::from_secs(1);

/// How often the topic is looked at: for partitions that were added, and for where each ends.
const LOG_INTERVAL: Duration = Duration::from_secs(1);
const ENDS_INTERVAL: Duration = Duration::from_secs(5);

/// What was found out for the tail and waits for it.
const QUEUED_NEWS: usize = 64;

/// How long requests in progress may take after shutdown has begun, beyond the wait for a position.
const DRAIN_MARGIN: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bind(#[from] edge::BindError),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("make a Kafka consumer")]
    Client(#[source] KafkaError),
}

/// Answers reads until `shutdown`, then finishes those in progress.
pub async fn run(
    config: &Config,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let signs = Signs::new(&health);
    let listener = edge::bind(config.reader.listen, "reads").await?;
    let consumer = tally_kafka::consumer(&config.kafka.cluster(), CLIENT_ID, CLIENT_ID)
        .set("enable.partition.eof", "true")
        .create_with_context(ErrorsByPoll)
        .map_err(Error::Client)?;
    let batches = DeltaBatches::new(&config.registry, &config.kafka.deltas)?;
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
        worker.work(&api, &drained).await;
        stop.cancel();
    };
    tokio::join!(serving, working);
    tracing::info!("drained");
    Ok(())
}

/// Readiness, condition by condition.
struct Signs {
    health: Health,
    /// The store's positions are known, and the log is read from there; its client still can.
    start: Condition,
    /// The log answers.
    log: Condition,
    /// What is stored proves itself.
    ledger: Condition,
}

impl Signs {
    fn new(health: &Health) -> Signs {
        let [start, log, ledger] =
            ["start", "log", "ClickHouse's ledger"].map(|name| health.condition(name));
        Signs { health: health.clone(), start, log, ledger }
    }
}

/// Everything that goes on beside the requests.
struct Worker<'a> {
    config: &'a Config,
    consumer: Arc<BaseConsumer<ErrorsByPoll>>,
    batches: DeltaBatches,
    metrics: Metrics,
    signs: Signs,
}

impl Worker<'_> {
    async fn work(self, api: &Api, stop: &CancellationToken) {
        let none = self.signs.health.condition("no partition stands still");
        let begun =
            starting_point(self.config, &self.consumer, &self.metrics, &self.signs.start, stop)
                .await;
        let Some(StartingPoint { store, vector, offsets }) = begun else { return };
        tracing::info!(
            position = %vector.position(),
            partitions = vector.partitions(),
            "deltas is read from where ClickHouse is"
        );

        let reader = &self.config.reader;
        let cached = CacheLimits { counters: reader.cached_counters, bytes: reader.cached_bytes };
        let state = Arc::new(SharedMemory::new(vector, cached, reader.unstored_bytes));
        let standstills = Standstills::new(none, self.metrics.clone(), Arc::clone(&state));
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

        let (news, told) = mpsc::channel(QUEUED_NEWS);
        let (looks, wanted) = watch::channel(0);
        let (schemas, asked) = mpsc::channel(QUEUED_NEWS);
        let questions = Questions { looks, schemas };
        let tailing = async {
            if let Err(unreadable) =
                self.tail(&state, standstills, questions, offsets, told, stop).await
            {
                tracing::error!(error = %unreadable, "no read is answered from now on");
                self.signs.start.set(false, unreadable.to_string());
                state.break_off(Arc::new(unreadable));
            }
        };
        let inquiry = Inquiry {
            kafka: &self.config.kafka,
            consumer: &self.consumer,
            store: &store,
            batches: &self.batches,
            news: &news,
            stop,
        };
        tokio::join!(
            tailing,
            misses::serve(&state, &store, jobs, stop),
            self.follow_store(&state, &store, &news, stop),
            self.follow_log(&state, &news, stop),
            inquiry.look(wanted),
            inquiry.ask_for_schemas(asked),
            verified::follow(&self.config.kafka, &state, &api.verified, stop),
        );
    }

    async fn tail(
        &self,
        state: &Arc<SharedMemory>,
        standstills: Standstills,
        questions: Questions,
        offsets: Vec<Result<i64, Broken>>,
        news: mpsc::Receiver<News>,
        stop: &CancellationToken,
    ) -> Result<(), Unreadable> {
        let (consumer, memory, stop) =
            (Arc::clone(&self.consumer), Arc::clone(state), stop.clone());
        let heartbeat = self.signs.health.heartbeat("tail", MAX_SILENCE);
        let (batches, topic) = (self.batches.clone(), self.config.kafka.deltas.clone());
        let tail = move || {
            let tail = Tail {
                consumer: &consumer,
                topic: &topic,
                batches: &batches,
                memory: &memory,
                standstills,
                questions,
            };
            tail::run(tail, offsets, news, &heartbeat, &stop)
        };
        tokio::task::spawn_blocking(tail).await.expect("the tail does not panic")
    }

    async fn follow_store(
        &self,
        state: &SharedMemory,
        store: &Store,
        news: &mpsc::Sender<News>,
        stop: &CancellationToken,
    ) {
        self.signs.ledger.set(true, "");
        let mut log = QuietLog::once();
        let mut unknown = UnknownPartitions::default();
        while stop.run_until_cancelled(tokio::time::sleep(LEDGER_INTERVAL)).await.is_some() {
            let looking = async {
                self.look_for_unknown(state, store, &mut unknown).await;
                store.places(state.partitions()).await
            };
            let Some(read) = stop.run_until_cancelled(looking).await else { return };
            tell(&mut log, "ClickHouse", read.as_ref().err().map(|error| error as _));
            if let Ok(places) = read {
                let damaged: Vec<String> = places
                    .iter()
                    .filter_map(|place| Some(place.as_ref().err()?.to_string()))
                    .collect();
                self.signs.ledger.set(damaged.is_empty(), damaged.join("; "));
                // Nothing is known of a partition whose ledger is damaged.
                let stored = places.into_iter().map(Result::unwrap_or_default);
                for (partition, broken) in state.learn(&Vector::new(stored.collect())) {
                    let disagrees = News::Disagrees { partition, broken };
                    if stop.run_until_cancelled(news.send(disagrees)).await.is_none() {
                        return;
                    }
                }
            }
            self.metrics.holds(state.holding());
        }
    }

    /// Looks for rows of partitions that the topic does not have. They change no answer; where
    /// Kafka or ClickHouse does not tell, another look will.
    async fn look_for_unknown(
        &self,
        state: &SharedMemory,
        store: &Store,
        unknown: &mut UnknownPartitions,
    ) {
        let Ok(found) = store.unknown_partitions(state.partitions()).await else { return };
        if unknown.is_news(&found)
            && let Ok(count) = partitions(&self.consumer, &self.config.kafka.deltas).await
        {
            unknown.tell(found, number(count));
        }
    }

    /// Looks at the topic: whether it has partitions that were added, and the lag of each.
    async fn follow_log(
        &self,
        state: &SharedMemory,
        news: &mpsc::Sender<News>,
        stop: &CancellationToken,
    ) {
        let mut log = QuietLog::once();
        let mut ends_are_due = Instant::now();
        let mut untold: Option<TopicError> = None;
        loop {
            let looking = async {
                let added = self.added(state).await;
                let mut ends = None;
                if Instant::now() >= ends_are_due {
                    ends_are_due = Instant::now() + ENDS_INTERVAL;
                    let told;
                    (told, untold) = self.ends(state).await;
                    ends = Some(News::Ends(told));
                }
                (added, ends)
            };
            let Some((added, ends)) = stop.run_until_cancelled(looking).await else { return };
            let error = added.as_ref().err().or(untold.as_ref());
            tell(&mut log, "Kafka", error.map(|error| error as _));
            self.signs
                .log
                .set(error.is_none(), error.map(TopicError::to_string).unwrap_or_default());
            for found in added.ok().flatten().into_iter().chain(ends) {
                if stop.run_until_cancelled(news.send(found)).await.is_none() {
                    return;
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(LOG_INTERVAL)).await.is_none() {
                return;
            }
        }
    }

    /// What partitions the topic has besides those that are known.
    async fn added(&self, state: &SharedMemory) -> Result<Option<News>, TopicError> {
        let deltas = &self.config.kafka.deltas;
        let from = state.partitions();
        let partitions = partitions(&self.consumer, deltas).await?;
        if partitions <= from {
            return Ok(None);
        }
        let bounds = bounds(&self.consumer, deltas, from..partitions).await;
        Ok(Some(News::Added { from, bounds: bounds.into_iter().collect::<Result<_, _>>()? }))
    }

    /// Where the log of each partition ends, where a broker tells; the error is of one that does
    /// not.
    async fn ends(&self, state: &SharedMemory) -> (Vec<Option<i64>>, Option<TopicError>) {
        let partitions = 0..state.partitions();
        let bounds = bounds(&self.consumer, &self.config.kafka.deltas, partitions).await;
        let mut untold = None;
        let end = |bounds: Result<(i64, i64), TopicError>| match bounds {
            Ok((_, high)) => Some(high),
            Err(error) => {
                untold = Some(error);
                None
            }
        };
        (bounds.into_iter().map(end).collect(), untold)
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
