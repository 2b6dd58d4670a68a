//! The calls, and the answers to all others.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;
use tracing::Span;

use crate::cache::Total;
use crate::counter::Counter;
use crate::metrics::Metrics;
use crate::problem::{Code, Fault, Problem};
use crate::reads::Reads;
use crate::request;

/// Room for as many counters as one query may ask for, their names as long as they may be.
const BODY_LIMIT_BYTES: usize = 16 << 20;

/// What all requests share.
pub(crate) struct Api {
    reads: OnceLock<Reads>,
    metrics: Metrics,
}

#[derive(Serialize)]
struct One<'a> {
    #[serde(flatten)]
    counter: Value<'a>,
    as_of: String,
}

#[derive(Serialize)]
struct Many<'a> {
    counters: Vec<Value<'a>>,
    as_of: String,
}

#[derive(Serialize)]
struct Value<'a> {
    namespace: &'a str,
    key: &'a str,
    value: i64,
    events: i64,
}

impl<'a> Value<'a> {
    fn new(counter: &'a Counter, total: Total) -> Result<Value<'a>, Problem> {
        let (namespace, key) = (counter.namespace(), counter.key());
        let fit = |field, total: i128| {
            let overflow = |_| {
                Problem::new(Code::Overflow, format!("{namespace}/{key}: `{field}` is {total}"))
            };
            i64::try_from(total).map_err(overflow)
        };
        Ok(Value {
            namespace,
            key,
            value: fit("value", total.sum)?,
            events: fit("events", total.events)?,
        })
    }
}

impl Api {
    pub(crate) fn new(metrics: Metrics) -> Api {
        Api { reads: OnceLock::new(), metrics }
    }

    /// Answers reads from now on.
    pub(crate) fn open(&self, reads: Reads) {
        self.reads.get_or_init(|| reads);
    }

    fn reads(&self) -> Result<&Reads, Problem> {
        let detail = "the log or the store has not answered yet";
        self.reads.get().ok_or_else(|| Problem::new(Code::NotReady, detail))
    }

    fn respond(&self, answer: Result<Response, Problem>) -> Response {
        self.metrics
            .answered(answer.as_ref().map_or_else(|problem| problem.code.as_str(), |_| "answered"));
        answer.unwrap_or_else(IntoResponse::into_response)
    }
}

pub(crate) fn routes(api: Arc<Api>) -> Router {
    let trace = TraceLayer::new_for_http()
        .make_span_with(span)
        .on_request(())
        .on_response(|response: &Response, _: Duration, span: &Span| {
            span.record("http.response.status_code", response.status().as_u16());
        })
        .on_failure(());
    Router::new()
        .route("/v1/counters/{namespace}/{key}", get(one))
        .route("/v1/counters/query", post(many))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(trace)
        .with_state(api)
}

async fn one(
    State(api): State<Arc<Api>>,
    path: Result<Path<(String, String)>, PathRejection>,
    pairs: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Response {
    let answer = async {
        let Path((namespace, key)) =
            path.map_err(|rejection| invalid("path", &rejection.body_text()))?;
        let Query(pairs) = pairs.map_err(|rejection| invalid("query", &rejection.body_text()))?;
        let counter =
            request::counter(&namespace, &key).map_err(|fault| Problem::invalid(vec![fault]))?;
        let options = request::options(&pairs)?;
        let reads = api.reads()?;
        let answer = match &options.buckets {
            Some(buckets) => reads.range(&counter, buckets, &options.after).await?,
            None => reads.counters(std::slice::from_ref(&counter), &options.after).await?,
        };
        let value = Value::new(&counter, answer.totals[0])?;
        Ok(fresh(One { counter: value, as_of: answer.as_of.to_string() }))
    };
    api.respond(answer.await)
}

async fn many(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let answer = async {
        check_media_type(&headers)?;
        let query = request::query(&body.map_err(|rejection| unread(&rejection))?)?;
        let answer = api.reads()?.counters(&query.counters, &query.after).await?;
        let values = query
            .counters
            .iter()
            .zip(&answer.totals)
            .map(|(counter, total)| Value::new(counter, *total));
        let counters = values.collect::<Result<_, _>>()?;
        Ok(fresh(Many { counters, as_of: answer.as_of.to_string() }))
    };
    api.respond(answer.await)
}

/// A count is out of date as soon as it is told.
fn fresh(body: impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response()
}

fn invalid(field: &str, reason: &str) -> Problem {
    Problem::invalid(vec![Fault::new(field, reason)])
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = given.to_str().ok().and_then(|text| text.split(';').next()).map(str::trim);
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => Err(Problem::new(
            Code::UnsupportedMediaType,
            format!("{given:?} is not application/json"),
        )),
    }
}

fn unread(rejection: &BytesRejection) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("it has more than {BODY_LIMIT_BYTES} bytes, the most allowed");
            Problem::new(Code::BodyTooLarge, detail)
        }
        _ => Problem::new(Code::MalformedBody, rejection.body_text()),
    }
}

async fn method_not_allowed(request: Request) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("{} {}", request.method(), request.uri().path()))
}

async fn not_found(request: Request) -> Problem {
    Problem::new(Code::NotFound, request.uri().path())
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let reason = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    tracing::error!(reason, "a request panicked");
    Problem::new(Code::Internal, "the reader's log tells more").into_response()
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
