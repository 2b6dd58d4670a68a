//! The one call, and the answers to all others.

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use tally_platform::config::Config;
use tokio::time::error::Elapsed;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;
use tracing::Span;
use uuid::Uuid;

use crate::body::{self, Avro, MediaType, Rules};
use crate::limits::Limits;
use crate::log::Log;
use crate::message::{Message, idempotency_key};
use crate::metrics::Metrics;
use crate::problem::{Code, Problem};
use crate::start::Started;

/// How long a body may take to arrive: it holds a place among the requests in progress meanwhile.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// When to ask again a gateway that is not ready, in seconds.
const NOT_READY_RETRY_S: u64 = 1;

/// What all requests share.
pub(crate) struct Gateway {
    counting: tally_counts::Rules,
    body_limit_bytes: usize,
    limits: Limits,
    avro: Avro,
    log: Arc<Log>,
    metrics: Metrics,
    started: OnceLock<Started>,
}

#[derive(Debug, Serialize)]
struct Accepted {
    accepted: usize,
    /// Includes the request's increments. Left out if the log has them but does not tell where.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
}

impl Gateway {
    pub(crate) fn new(config: &Config, log: Arc<Log>, metrics: Metrics) -> Gateway {
        Gateway {
            counting: config.rules(),
            body_limit_bytes: config.producer.body_limit_bytes,
            limits: Limits::new(&config.producer),
            avro: Avro::new(),
            log,
            metrics,
            started: OnceLock::new(),
        }
    }

    /// Lets increments in from now on.
    pub(crate) fn open(&self, started: Started) {
        self.started.get_or_init(|| started);
    }

    /// Returns once no request is in progress and no message is on its way, but after the longest
    /// that one can take at the latest.
    pub(crate) async fn idle(&self) -> Result<(), Elapsed> {
        tokio::time::timeout(BODY_TIMEOUT + self.log.report_timeout(), self.limits.idle()).await
    }

    async fn append(&self, request: Request) -> Result<Accepted, Problem> {
        let in_flight = self.limits.enter(&self.metrics)?;
        let Some(started) = self.started.get() else {
            let detail = "the schema registry or the log has not answered yet";
            return Err(Problem::new(Code::NotReady, detail).retry_after(NOT_READY_RETRY_S));
        };
        let media_type = MediaType::of(request.headers())?;
        let id = idempotency_key(request.headers())?.map(str::to_owned);
        let body = self.read(request).await?;
        let message = self.message(media_type, &body, id.as_deref(), started)?;
        self.limits.allow(message.increments)?;
        let position = self.log.append(&message, in_flight).await?;
        Ok(Accepted {
            accepted: message.increments,
            position: position.map(|position| position.to_string()),
        })
    }

    async fn read(&self, request: Request) -> Result<Bytes, Problem> {
        let body = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &()));
        match body.await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(rejection)) => Err(self.unread(&rejection)),
            Err(_) => Err(Problem::new(
                Code::BodyTimeout,
                format!("it took longer than {BODY_TIMEOUT:?}"),
            )),
        }
    }

    fn unread(&self, rejection: &BytesRejection) -> Problem {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let detail =
                    format!("it has more than {} bytes, the most allowed", self.body_limit_bytes);
                Problem::new(Code::BodyTooLarge, detail)
            }
            _ => Problem::new(Code::MalformedBody, rejection.body_text()),
        }
    }

    fn message(
        &self,
        media_type: MediaType,
        body: &[u8],
        id: Option<&str>,
        started: &Started,
    ) -> Result<Message, Problem> {
        let rules =
            Rules { now_ms: jiff::Timestamp::now().as_millisecond(), counting: self.counting };
        let parsed = body::parse(media_type, &self.avro, body, rules)?;
        let unique = Uuid::now_v7().simple().to_string();
        let message = Message::new(&parsed, id, &unique, started.schema_ids)?;
        if let Some(max_bytes) = started.max_message_bytes {
            message.check_size(max_bytes)?;
        }
        Ok(message)
    }
}

pub(crate) fn routes(gateway: Arc<Gateway>) -> Router {
    let body_limit = DefaultBodyLimit::max(gateway.body_limit_bytes);
    let trace = TraceLayer::new_for_http()
        .make_span_with(span)
        .on_request(())
        .on_response(|response: &Response, _: Duration, span: &Span| {
            span.record("http.response.status_code", response.status().as_u16());
        })
        .on_failure(());
    Router::new()
        .route("/v1/increments", post(append))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(body_limit)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(trace)
        .with_state(gateway)
}

async fn append(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let accounting = gateway.metrics.request();
    let answer = gateway.append(request).await;
    accounting.finish(answer.as_ref().map_or_else(|problem| problem.code.as_str(), |_| "accepted"));
    answer.map(Json).into_response()
}

async fn method_not_allowed(request: Request) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("{} is not POST", request.method()))
}

async fn not_found(request: Request) -> Problem {
    Problem::new(Code::NotFound, format!("{} is not /v1/increments", request.uri().path()))
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let reason = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    tracing::error!(reason, "a request panicked");
    Problem::new(Code::Internal, "the gateway's log tells more").into_response()
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

#[cfg(test)]
mod tests;
