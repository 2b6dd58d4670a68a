//! The one call, and the answers to all others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use tally_platform::config::Config;
use tally_platform::http::{BodyLimits, with_edge};
use tally_platform::problem::Code as _;
use tokio::time::error::Elapsed;
use uuid::Uuid;

use crate::body::{self, Avro, MediaType, Rules};
use crate::kafka_log::KafkaLog;
use crate::limits::Limits;
use crate::message::{self, Messages, idempotency_key};
use crate::metrics::Metrics;
use crate::prerequisites::Prerequisites;
use crate::problem::{Code, Problem, not_appended};

/// How long a body may still take that arrives while the gateway drains.
const LAST_BODY: Duration = Duration::from_secs(10);

/// What all requests share.
pub(crate) struct Gateway {
    counting: tally_counts::Rules,
    bodies: BodyLimits,
    limits: Limits,
    avro: Avro,
    log: Arc<KafkaLog>,
    metrics: Metrics,
    started: OnceLock<Prerequisites>,
    /// Whether the schema registry has Tally's schemas no more.
    lost_schemas: AtomicBool,
}

#[derive(Debug, Serialize)]
struct Accepted {
    accepted: usize,
    /// Includes the request's increments.
    position: String,
}

impl Gateway {
    pub(crate) fn new(config: &Config, log: Arc<KafkaLog>, metrics: Metrics) -> Gateway {
        Gateway {
            counting: config.rules(),
            bodies: BodyLimits::new(
                config.producer.body_limit_bytes,
                config.producer.max_bytes_in_flight,
            ),
            limits: Limits::new(&config.producer),
            avro: Avro::new(),
            log,
            metrics,
            started: OnceLock::new(),
            lost_schemas: AtomicBool::new(false),
        }
    }

    /// Lets increments in from now on.
    pub(crate) fn open(&self, started: Prerequisites) {
        self.started.get_or_init(|| started);
    }

    /// Lets increments in, or not, for as long as the registry has Tally's schemas.
    pub(crate) fn allow(&self, allowed: bool) {
        self.lost_schemas.store(!allowed, Ordering::Relaxed);
    }

    /// Returns once no request is in progress and no message is on its way; at the latest after the
    /// longest that one can take whose body comes in time.
    pub(crate) async fn idle(&self) -> Result<(), Elapsed> {
        tokio::time::timeout(LAST_BODY + self.log.report_timeout(), self.limits.idle()).await
    }

    async fn append(&self, request: Request) -> Result<Accepted, Problem> {
        // Whoever waits for the end waits for this too, and nothing else is held before the body
        // is there: a client that sends slowly keeps nobody out.
        let token = self.limits.token();
        let started = self.started.get().ok_or_else(not_ready)?;
        if self.lost_schemas.load(Ordering::Relaxed) {
            let detail = "the schema registry does not have Tally's schemas any more";
            return Err(Problem::new(Code::NotReady, detail));
        }
        let media_type = MediaType::of(request.headers())?;
        let id =
            idempotency_key(request.headers()).map_err(message::Error::from)?.map(str::to_owned);
        let body = self.bodies.receive(request).await.map_err(Problem::refused)?;
        let in_flight = self.limits.enter(&self.metrics, token, body.room)?;
        let messages = self.messages(media_type, &body.bytes, id.as_deref(), started)?;
        drop(body.bytes);
        let increments = messages.increments();
        self.limits.allow(increments)?;
        let appended = self.log.append(&messages.list, in_flight).await;
        let position = appended.map_err(|error| not_appended(&error, messages.recognised))?;
        Ok(Accepted { accepted: increments, position: position.to_string() })
    }

    fn messages(
        &self,
        media_type: MediaType,
        body: &[u8],
        id: Option<&str>,
        started: &Prerequisites,
    ) -> Result<Messages, Problem> {
        let rules =
            Rules { now_ms: jiff::Timestamp::now().as_millisecond(), counting: self.counting };
        let parsed = body::parse(media_type, &self.avro, body, rules)?;
        let unique = Uuid::now_v7().simple().to_string();
        let partitions = self.log.partitions().ok_or_else(not_ready)?;
        let messages = Messages::new(&parsed, id, &unique, started.schema_ids, partitions)?;
        if let Some(max_bytes) = started.max_message_bytes {
            messages.check_size(max_bytes)?;
        }
        Ok(messages)
    }
}

fn not_ready() -> Problem {
    Problem::new(Code::NotReady, "the schema registry or the log has not answered yet")
}

pub(crate) fn routes(gateway: Arc<Gateway>) -> Router {
    let routes = Router::new().route("/v1/increments", post(append));
    with_edge::<Code, _>(routes).with_state(gateway)
}

async fn append(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let accounting = gateway.metrics.request();
    let answer = gateway.append(request).await;
    accounting.finish(answer.as_ref().map_or_else(|problem| problem.code.name(), |_| "accepted"));
    answer.map(Json).into_response()
}

#[cfg(test)]
mod tests;
