//! The HTTP edge of every service: ports, connections, draining, and what is answered to requests
//! that no handler takes.
//!
//! ```text
//!  bind ─► serve ─► trace span ─► panics to 500 ─► body limit ─┬─► the service's routes
//!            │                                                 └─► 404, 405 (Refusal ─► Code)
//!            └── shutdown: no new connections; requests in progress end, or are cut off
//! ```

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;
use tracing::Span;

use crate::problem::{Code, Problem};

#[derive(Debug, thiserror::Error)]
#[error("listen on {addr} for {purpose}")]
pub struct BindError {
    pub addr: SocketAddr,
    pub purpose: &'static str,
    pub source: io::Error,
}

/// Takes a port, so that one that is in use is reported before anything else starts.
pub async fn bind(addr: SocketAddr, purpose: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|source| BindError { addr, purpose, source })
}

/// Serves until `shutdown`, then until every request in progress is answered. What is still
/// connected when `drain_limit`, which starts at `shutdown`, has completed is cut off.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    shutdown: &CancellationToken,
    drain_limit: impl Future<Output = ()>,
) -> io::Result<()> {
    // An answer is one small write: it must not wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::warn!(%error, "set TCP_NODELAY; answers on this connection may be slower");
        }
    });
    let server =
        axum::serve(listener, routes).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        served = server => served,
        () = async { shutdown.cancelled().await; drain_limit.await } => Ok(()),
    }
}

/// What the edge itself refuses, before or after a handler. A service says by [`Code::refuse`] what
/// it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotFound {
        path: String,
    },
    MethodNotAllowed {
        method: Method,
        path: String,
    },
    BodyTooLarge {
        max_bytes: usize,
    },
    /// The body did not arrive whole.
    UnreadBody {
        reason: String,
    },
    Panicked,
}

impl Refusal {
    /// Why axum could not read a body of at most `max_bytes`.
    pub fn of_body(rejection: &BytesRejection, max_bytes: usize) -> Refusal {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Refusal::BodyTooLarge { max_bytes }
        } else {
            Refusal::UnreadBody { reason: rejection.body_text() }
        }
    }
}

/// Adds to a service's routes what every service has: a trace span for each request, 500 for a
/// panic, 404 and 405, and a limit of the body's bytes.
pub fn with_edge<C: Code, S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    body_limit_bytes: usize,
) -> Router<S> {
    let trace = TraceLayer::new_for_http()
        .make_span_with(span)
        .on_request(())
        .on_response(|response: &Response, _: Duration, span: &Span| {
            span.record("http.response.status_code", response.status().as_u16());
        })
        .on_failure(());
    routes
        .method_not_allowed_fallback(method_not_allowed::<C>)
        .fallback(not_found::<C>)
        .layer(DefaultBodyLimit::max(body_limit_bytes))
        .layer(CatchPanicLayer::custom(panicked::<C>))
        .layer(trace)
}

async fn method_not_allowed<C: Code>(request: Request) -> Problem<C> {
    let path = request.uri().path().to_owned();
    Problem::refused(Refusal::MethodNotAllowed { method: request.method().clone(), path })
}

async fn not_found<C: Code>(request: Request) -> Problem<C> {
    Problem::refused(Refusal::NotFound { path: request.uri().path().to_owned() })
}

fn panicked<C: Code>(panic: Box<dyn Any + Send + 'static>) -> Response {
    let reason = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    tracing::error!(reason, "a request panicked and is answered 500; others go on");
    Problem::<C>::refused(Refusal::Panicked).into_response()
}

fn span(request: &Request) -> Span {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    tracing::info_span!(
        "request",
        otel.kind = "server",
        http.request.method = %request.method(),
        http.route = route,
        url.path = request.uri().path(),
        http.response.status_code = tracing::field::Empty,
    )
}

/// A media type without its parameters, in lower case; `None` if it is no text.
pub fn essence(content_type: &HeaderValue) -> Option<String> {
    let text = content_type.to_str().ok()?;
    text.split(';').next().map(|essence| essence.trim().to_ascii_lowercase())
}
