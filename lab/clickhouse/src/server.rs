//! The HTTP server: who may run when, and how it ends.
//!
//! ```text
//!  request ──► slot (wait, then 503) ──► body ──► call ──► query id (taken: 216)
//!                                                           └──► blocking thread: run
//!
//!  shutdown ──► no new connections ──► drain ──deadline──► KILL QUERY ──► engine closed
//!                                                                          └──► serve returns
//! ```
//!
//! A client that goes away does not stop its statement, as with ClickHouse; slot and query id stay
//! taken until it ends.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{Method, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
    serve::ListenerExt,
};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    body::{self, Body},
    call::{self, Call},
    engine::Engine,
    exception::{Exception, exception},
    ffi::Connection,
    reply::Envelope,
    run::{self, FormattedResult},
    sessions::Sessions,
};

/// How long a sender may pause within a body; ClickHouse's `http_receive_timeout`.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// How long killed statements get to end.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Statements go on in the engine's threads then. Destructors would pull the ground from under
/// them: leave the process by `_exit`. The data is as after a crash, which the engine recovers
/// from.
const BUSY: &str = "the engine did not stop: a statement or an answer is still in use";

#[derive(Clone, Debug)]
pub struct Config {
    /// `libchdb.so`.
    pub library: PathBuf,
    /// The engine's data, made if it is not there. One engine at a time may use it.
    pub data: PathBuf,
    pub listen: SocketAddr,
    /// How many calls may be under way at once; others wait for `queue_timeout`.
    pub connections: usize,
    pub queue_timeout: Duration,
    /// The most that a body may hold, before and after decompression. Calls under way keep their
    /// bodies in memory.
    pub body_limit_bytes: usize,
    /// How long calls under way may go on after a shutdown; then their statements are killed.
    pub drain_timeout: Duration,
}

impl Config {
    pub fn new(library: PathBuf, data: PathBuf, listen: SocketAddr) -> Self {
        Self {
            library,
            data,
            listen,
            connections: 32,
            queue_timeout: Duration::from_secs(10),
            body_limit_bytes: 1 << 30,
            drain_timeout: Duration::from_secs(20),
        }
    }
}

/// Serves until `shutdown`, lets calls under way finish, closes the engine.
pub async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    Server::bind(config).await?.run(shutdown).await
}

/// A server that has its port and its engine, but does not accept yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<ServerState>,
}

struct ServerState {
    engine: Engine,
    config: Config,
    slots: Arc<Semaphore>,
    running: RunningQueries,
    sessions: Sessions<Connection>,
    statements: TaskTracker,
}

impl Server {
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let listen = || format!("listen on {}", config.listen);
        let listener = TcpListener::bind(config.listen).await.with_context(listen)?;
        let address = listener.local_addr().with_context(listen)?;
        let (library, data) = (config.library.clone(), config.data.clone());
        let engine = tokio::task::spawn_blocking(move || Engine::open(&library, &data)).await?;
        let engine = engine.context("open the engine")?;
        let state = Arc::new(ServerState {
            engine,
            slots: Arc::new(Semaphore::new(config.connections)),
            running: RunningQueries::default(),
            sessions: Sessions::new(),
            statements: TaskTracker::new(),
            config,
        });
        Ok(Self { listener, address, state })
    }

    /// Where it listens; of use when the configured port is 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { listener, address, state } = self;
        let (version, data) = (&state.engine.identity.version, state.config.data.display());
        tracing::info!(%address, version, %data, "store ready");
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "set TCP_NODELAY");
            }
        });
        let app = Router::new()
            .route("/", get(handle).post(handle))
            .route("/ping", get(|| async { "Ok.\n" }))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&state));
        let draining = shutdown.clone();
        let server = axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned());
        let served = tokio::select! {
            served = server => served.context("accept connections"),
            () = deadline(draining, state.config.drain_timeout) => {
                state.kill_statements();
                Ok(())
            }
        };
        state.stop().await?;
        served
    }
}

async fn deadline(shutdown: CancellationToken, drain_timeout: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(drain_timeout).await;
}

async fn handle(State(service): State<Arc<ServerState>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.method == Method::GET && parts.uri.query().is_none() {
        return "Ok.\n".into_response();
    }
    let mut envelope = Envelope { query_id: Uuid::new_v4().to_string(), compress: false };
    match Arc::clone(&service).perform(&parts, body, &mut envelope).await {
        Ok(outcome) => envelope.answer(&service.engine.identity, outcome),
        Err(exception) => {
            tracing::debug!(query_id = envelope.query_id, %exception, "call failed");
            envelope.exception(&service.engine.identity, &exception)
        }
    }
}

impl ServerState {
    async fn perform(
        self: Arc<Self>,
        parts: &Parts,
        body: axum::body::Body,
        envelope: &mut Envelope,
    ) -> Result<FormattedResult, Exception> {
        let mut pairs = call::pairs(parts.uri.query().unwrap_or(""))?;
        let slot = self.slot().await?;
        let mut body = body::receive(body, self.config.body_limit_bytes, BODY_PATIENCE).await?;
        if body::is_form(&parts.headers) {
            pairs.extend(std::mem::take(&mut body).form(&parts.headers).await?);
        }
        let call = Call::new(&parts.method, &parts.headers, pairs)?;
        envelope.compress = call.compress;
        if let Some(query_id) = &call.query_id {
            envelope.query_id.clone_from(query_id);
        }
        let taken = RunningQueries::begin(&self, &envelope.query_id)?;
        let statement = self.statements.spawn_blocking({
            let service = Arc::clone(&self);
            move || {
                let _held = (slot, taken);
                service.run(&call, body)
            }
        });
        statement
            .await
            .unwrap_or_else(|_| Err(exception!(LOGICAL_ERROR, "The statement's thread panicked")))
    }

    async fn slot(&self) -> Result<OwnedSemaphorePermit, Exception> {
        let patience = self.config.queue_timeout;
        match tokio::time::timeout(patience, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_closed)) => {
                Err(exception!(TOO_MANY_SIMULTANEOUS_QUERIES, "The server is shutting down"))
            }
            Err(_elapsed) => Err(exception!(
                TOO_MANY_SIMULTANEOUS_QUERIES,
                "Too many simultaneous queries: {} are running, \
                     and none ended within {patience:?}",
                self.config.connections
            )),
        }
    }

    fn run(&self, call: &Call, body: Body) -> Result<FormattedResult, Exception> {
        let data = body.reader(call.encoding, call.decompress, self.config.body_limit_bytes);
        let Some(session) = &call.session else {
            return run::run(&mut self.engine.connect()?, call, data);
        };
        let connect = || self.engine.connect();
        let mut lease =
            self.sessions.lease(&session.id, session.must_exist, Instant::now(), connect)?;
        let (outcome, clean) = run::run_in_session(lease.connection(), call, data);
        if clean {
            lease.keep(Instant::now(), session.timeout);
        }
        outcome
    }

    fn kill_statements(&self) {
        let after = self.config.drain_timeout;
        tracing::warn!(?after, "killing statements that are still running");
        let killed = self.engine.connect().and_then(|mut connection| {
            connection.query(b"KILL QUERY WHERE query_id != queryID() ASYNC", "Null", &[]).map(drop)
        });
        if let Err(exception) = killed {
            tracing::warn!(%exception, "KILL QUERY failed; statements go on");
        }
    }

    async fn stop(self: Arc<Self>) -> anyhow::Result<()> {
        self.slots.close();
        self.statements.close();
        let ended = tokio::time::timeout(KILL_PATIENCE, self.statements.wait()).await;
        ended.map_err(|_| anyhow!(BUSY))?;
        self.sessions.clear();
        let closed = tokio::task::spawn_blocking(move || self.engine.close()).await?;
        anyhow::ensure!(closed, BUSY);
        tracing::info!("store stopped");
        Ok(())
    }
}

/// The ids of the statements that run, each of them once.
#[derive(Default)]
struct RunningQueries {
    ids: Mutex<HashSet<String>>,
}

/// A query id that is taken until this is dropped.
struct TakenQueryId {
    service: Arc<ServerState>,
    id: String,
}

impl RunningQueries {
    fn begin(service: &Arc<ServerState>, id: &str) -> Result<TakenQueryId, Exception> {
        if service.running.lock(|ids| ids.insert(id.to_owned())) {
            return Ok(TakenQueryId { service: Arc::clone(service), id: id.to_owned() });
        }
        Err(exception!(
            QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
            "Query with id = {id} is already running"
        ))
    }

    fn lock<T>(&self, f: impl FnOnce(&mut HashSet<String>) -> T) -> T {
        f(&mut self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for TakenQueryId {
    fn drop(&mut self) {
        self.service.running.lock(|ids| ids.remove(&self.id));
    }
}
