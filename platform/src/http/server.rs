//! Accepting connections, no more than a limit, and serving requests on them.
//!
//! ```text
//!  accept ─┬─► one of `max_connections` places ─► routes
//!          ├─► else one of a few for refusals  ─► 503, Retry-After
//!          └─► else nothing is accepted: the kernel's queue is bounded too
//! ```

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::connection::{Connection, Progress, RequestBody, Timeouts};
use crate::quiet_log::QuietLog;

/// The most that is buffered of what a connection reads, a request's head among it, and again of
/// what it writes.
const BUFFER_BYTES: usize = 32 << 10;

/// How many connections beyond the limit are answered 503 at once.
const MAX_REFUSALS: usize = 64;

/// How long a connection beyond the limit may take for its one request.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the same trouble is said, at most.
const REMINDER: Duration = Duration::from_secs(60);

/// How long nothing is accepted after the process or the system had no room for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What is served on a port.
pub struct Server {
    routes: Router,
    /// Answers on connections beyond the limit.
    over_limit: Router,
    max_connections: usize,
    timeouts: Timeouts,
}

/// What a connection is accepted for.
enum Slot {
    /// Its requests: it is within the limit.
    Place(OwnedSemaphorePermit),
    /// An answer that says that it is beyond the limit.
    Refusal(OwnedSemaphorePermit),
}

impl Server {
    /// Serves `routes` on at most `max_connections` at once, and `over_limit` on others, one
    /// request on each.
    pub fn new(routes: Router, over_limit: Router, max_connections: usize) -> Server {
        Server { routes, over_limit, max_connections, timeouts: Timeouts::default() }
    }

    /// With other times than by default.
    #[cfg(test)]
    pub(super) fn with_timeouts(self, timeouts: Timeouts) -> Server {
        Server { timeouts, ..self }
    }

    /// Serves until `shutdown`, then until every request in progress is answered. What is still
    /// connected when `drain_limit`, which starts at `shutdown`, has completed is cut off.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: &CancellationToken,
        drain_limit: impl Future<Output = ()>,
    ) {
        let mut connections = JoinSet::new();
        let accepting = self.accept(listener, &mut connections, shutdown);
        shutdown.run_until_cancelled(accepting).await;
        let drained = async {
            while let Some(ended) = connections.join_next().await {
                tell(ended);
            }
        };
        tokio::select! {
            () = drained => return,
            () = drain_limit => {}
        }
        connections.shutdown().await;
    }

    /// Accepts for ever; whoever stops it closes the port.
    async fn accept(
        self,
        listener: TcpListener,
        connections: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) {
        let places = Arc::new(Semaphore::new(self.max_connections));
        let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
        let (mut unaccepted, mut refused) = (QuietLog::every(REMINDER), QuietLog::every(REMINDER));
        let refused_total = opentelemetry::global::meter("tally")
            .u64_counter("tally_http_refused_connections_total")
            .with_description("Connections beyond the limit, answered 503.")
            .build();
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.timeouts.idle)
            .max_buf_size(BUFFER_BYTES);
        let mut once = http.clone();
        once.keep_alive(false);
        loop {
            let slot = Slot::next(&places, &refusals).await;
            let socket = accepted(&listener, &mut unaccepted).await;
            while let Some(ended) = connections.try_join_next() {
                tell(ended);
            }
            match slot.anew(&places) {
                Slot::Place(place) => {
                    let (http, routes) = (http.clone(), self.routes.clone());
                    let serving = serve(http, socket, routes, self.timeouts, shutdown.clone());
                    connections.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                Slot::Refusal(refusal) => {
                    refused_total.add(1, &[]);
                    if let Some(refused) = refused.failed(Instant::now()) {
                        tracing::warn!(
                            refused,
                            max_connections = self.max_connections,
                            address = listener.local_addr().ok().map(tracing::field::display),
                            "as many connections are open as may be; others are answered 503"
                        );
                    }
                    let (once, routes) = (once.clone(), self.over_limit.clone());
                    let refusing = serve(once, socket, routes, self.timeouts, shutdown.clone());
                    connections.spawn(async move {
                        // Whoever takes longer is cut off: it would keep others from being told.
                        if tokio::time::timeout(REFUSAL_TIMEOUT, refusing).await.is_err() {
                            tracing::debug!("a connection beyond the limit is cut off");
                        }
                        drop(refusal);
                    });
                }
            }
        }
    }
}

impl Slot {
    /// Waits where there is no slot of either kind.
    async fn next(places: &Arc<Semaphore>, refusals: &Arc<Semaphore>) -> Slot {
        let (place, refusal) =
            (Arc::clone(places).acquire_owned(), Arc::clone(refusals).acquire_owned());
        tokio::select! {
            biased;
            place = place => Slot::Place(place.expect("it is never closed")),
            refusal = refusal => Slot::Refusal(refusal.expect("it is never closed")),
        }
    }

    /// A place, if there is one by now: the connection may have come much later than the slot.
    fn anew(self, places: &Arc<Semaphore>) -> Slot {
        match (self, Arc::clone(places).try_acquire_owned()) {
            (Slot::Refusal(_), Ok(place)) => Slot::Place(place),
            (slot, _) => slot,
        }
    }
}

async fn accepted(listener: &TcpListener, log: &mut QuietLog) -> TcpStream {
    loop {
        let error = match listener.accept().await {
            Ok((socket, _)) => return socket,
            Err(error) => error,
        };
        // Of one connection, which is gone; not of the port.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
        ) {
            continue;
        }
        if let Some(failures) = log.failed(Instant::now()) {
            tracing::warn!(%error, failures, "accept a connection; trying again every second");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Serves the requests of one connection, one after the other.
async fn serve(
    http: http1::Builder,
    socket: TcpStream,
    routes: Router,
    timeouts: Timeouts,
    shutdown: CancellationToken,
) {
    // An answer is one small write: it must not wait for the acknowledgement of the one before.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::warn!(%error, "set TCP_NODELAY; answers on this connection may be slower");
    }
    let progress = Arc::new(Progress::default());
    let socket = TokioIo::new(Connection::new(socket, Arc::clone(&progress), timeouts));
    let service = service_fn(|request| answer(request, routes.clone(), Arc::clone(&progress)));
    let mut serving = pin!(http.serve_connection(socket, service));
    let served = tokio::select! {
        served = &mut serving => served,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended before its request was answered");
    }
}

async fn answer(
    request: Request<Incoming>,
    mut routes: Router,
    progress: Arc<Progress>,
) -> Result<Response, Infallible> {
    progress.begin(request.body());
    let body = |body| Body::new(RequestBody { body, progress: Arc::clone(&progress) });
    let mut response = routes.call(request.map(body)).await?;
    if progress.is_unread() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    progress.answered();
    Ok(response)
}

fn tell(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked; its client gets no answer");
    }
}
