//! `/livez`, `/readyz` and `/metrics` over HTTP: on a port of their own, or among a service's other
//! routes.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::TextEncoder;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Health;
use crate::http::Server;

/// How long requests in progress may take after shutdown has begun.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// More than any number of probes and scrapers needs.
const MAX_CONNECTIONS: usize = 64;

#[derive(Clone)]
struct Sources {
    health: Health,
    metrics: prometheus::Registry,
}

/// Serves [`routes`] until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: prometheus::Registry,
    shutdown: CancellationToken,
) {
    // Made when it is awaited, so that its time starts at shutdown.
    let drain_limit = async { tokio::time::sleep(DRAIN_LIMIT).await };
    let over_limit = Router::new().fallback(over_limit);
    let server = Server::new(routes(health, metrics), over_limit, MAX_CONNECTIONS);
    server.serve(listener, &shutdown, drain_limit).await;
}

pub fn routes(health: Health, metrics: prometheus::Registry) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(Sources { health, metrics })
}

async fn over_limit() -> Response {
    let retry = [(header::RETRY_AFTER, "1")];
    (StatusCode::SERVICE_UNAVAILABLE, retry, "too many connections").into_response()
}

async fn live(State(sources): State<Sources>) -> Response {
    match sources.health.alive() {
        Ok(()) => "alive".into_response(),
        Err(silent) => (StatusCode::SERVICE_UNAVAILABLE, silent).into_response(),
    }
}

async fn ready(State(sources): State<Sources>) -> Response {
    match sources.health.ready() {
        Ok(()) => "ready".into_response(),
        Err(failed) => (StatusCode::SERVICE_UNAVAILABLE, failed).into_response(),
    }
}

async fn scrape(State(sources): State<Sources>) -> Response {
    match TextEncoder::new().encode_to_string(&sources.metrics.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "encode metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
