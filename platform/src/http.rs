//! The HTTP edge of every service: ports, connections, draining, and what is answered to requests
//! that no handler takes.
//!
//! ```text
//!  bind ─► Server ─► trace span ─► panics to 500 ─┬─► the service's routes ─► BodyLimits::receive
//!            │                                    └─► 404, 405 (Refusal ─► Code)
//!            ├── beyond max_connections: 503
//!            └── shutdown: no new connections; requests in progress end, or are cut off
//! ```

mod body;
mod connection;
mod content_encoding;
mod server;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;
use tracing::Span;

use crate::problem::{Code, Problem};

pub use body::{BodyLimits, BodyRoom, ReceivedBody};
pub use server::Server;

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
    /// The body did not arrive whole, or is not compressed as its headers say.
    UnreadBody {
        reason: String,
    },
    BodyTimeout {
        after: Duration,
    },
    /// The bodies of all requests would take more than so many bytes.
    NoRoom {
        room_bytes: usize,
    },
    /// The body's Content-Encoding is not known.
    UnsupportedEncoding {
        given: HeaderValue,
    },
    TooManyConnections,
    Panicked,
}

/// Adds to a service's routes what every service has: a trace span for each request, 500 for a
/// panic, 404 and 405.
pub fn with_edge<C: Code, S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
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
        .layer(CatchPanicLayer::custom(panicked::<C>))
        .layer(trace)
}

/// What is answered on connections beyond the limit.
pub fn over_limit<C: Code>() -> Router {
    Router::new().fallback(async || Problem::<C>::refused(Refusal::TooManyConnections))
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

/// A text without the byte order mark that some clients write first.
pub fn without_byte_order_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text)
}
