//! The calls, and the answers to all others.

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Serialize, Serializer};
use tally_platform::http::{BodyLimits, Server, essence, over_limit, with_edge};
use tally_platform::problem::Code as _;

use crate::cache::Total;
use crate::counter::Counter;
use crate::metrics::Metrics;
use crate::problem::{Code, Problem};
use crate::reads::Reads;
use crate::request::{self, Numbers, OddCounter};
use crate::verified::LastVerified;

/// Room for as many counters as one query may ask for, their names as long as they may be.
const BODY_LIMIT_BYTES: usize = 16 << 20;

/// What the bodies of all queries and their answers may take, those that are still arriving and
/// those that are not sent yet among them.
const BODIES_BYTES: usize = 64 << 20;

/// A count is out of date as soon as it is told.
const NOT_KEPT: (HeaderName, HeaderValue) =
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));

const OVERFLOW: &str = "what ClickHouse has of the counter comes to more than 128 bits";

/// What all requests share.
pub(crate) struct Api {
    reads: OnceLock<Reads>,
    pub(crate) verified: LastVerified,
    bodies: BodyLimits,
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
    counters: Vec<Item<'a>>,
    as_of: String,
}

/// A counter of a query: its value, or why it has none.
#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Value(Value<'a>),
    Error { namespace: &'a str, key: &'a str, error: ItemError<'a> },
}

#[derive(Serialize)]
struct ItemError<'a> {
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    reason: &'a str,
}

#[derive(Serialize)]
struct Value<'a> {
    namespace: &'a str,
    key: &'a str,
    value: Number,
    events: Number,
}

/// A sum of 128 bits, in the way that was asked for.
struct Number(i128, Numbers);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.1 {
            Numbers::Number => to.serialize_i128(self.0),
            Numbers::String => to.collect_str(&self.0),
        }
    }
}

impl<'a> Item<'a> {
    fn new(counter: &'a Counter, total: Total, numbers: Numbers) -> Item<'a> {
        if total.is_exact() {
            return Item::Value(Value::new(counter, total, numbers));
        }
        let error = ItemError::new(Code::ValueOverflow, None, OVERFLOW);
        Item::Error { namespace: counter.namespace(), key: counter.key(), error }
    }

    fn odd(OddCounter { namespace, key, fault }: &'a OddCounter) -> Item<'a> {
        let error = ItemError::new(Code::InvalidRequest, Some(&fault.field), &fault.reason);
        Item::Error { namespace, key, error }
    }
}

impl<'a> ItemError<'a> {
    fn new(code: Code, field: Option<&'a str>, reason: &'a str) -> ItemError<'a> {
        ItemError { r#type: format!("urn:tally:problem:{}", code.name()), field, reason }
    }
}

impl<'a> Value<'a> {
    fn new(counter: &'a Counter, total: Total, numbers: Numbers) -> Value<'a> {
        let number = |value| Number(value, numbers);
        Value {
            namespace: counter.namespace(),
            key: counter.key(),
            value: number(total.sum),
            events: number(total.events),
        }
    }
}

impl Api {
    pub(crate) fn new(metrics: Metrics) -> Api {
        Api {
            reads: OnceLock::new(),
            verified: LastVerified::default(),
            bodies: BodyLimits::new(BODY_LIMIT_BYTES, BODIES_BYTES),
            metrics,
        }
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
            .answered(answer.as_ref().map_or_else(|problem| problem.code.name(), |_| "answered"));
        answer.unwrap_or_else(IntoResponse::into_response)
    }
}

/// Serves the calls on at most `max_connections` at once.
pub(crate) fn server(api: Arc<Api>, max_connections: usize) -> Server {
    Server::new(routes(api), over_limit::<Code>(), max_connections)
}

fn routes(api: Arc<Api>) -> Router {
    let routes = Router::new()
        .route("/v1/counters/{namespace}/{key}", get(one))
        .route("/v1/counters/query", post(many))
        .route("/v1/verified", get(verified));
    with_edge::<Code, _>(routes).with_state(api)
}

async fn one(
    State(api): State<Arc<Api>>,
    path: Result<Path<(String, String)>, PathRejection>,
    pairs: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Response {
    let answer = async {
        let Path((namespace, key)) =
            path.map_err(|rejection| invalid("path", &rejection.body_text()))?;
        let pairs = query_string(pairs)?;
        let counter = request::counter(&namespace, &key).map_err(request::Error::from)?;
        let options = request::options(&pairs)?;
        let reads = api.reads()?;
        let answer = match &options.buckets {
            Some(buckets) => reads.range(&counter, buckets, &options.after).await?,
            None => reads.counters(std::slice::from_ref(&counter), &options.after).await?,
        };
        if !answer.totals[0].is_exact() {
            return Err(Problem::new(Code::ValueOverflow, OVERFLOW));
        }
        let value = Value::new(&counter, answer.totals[0], options.numbers);
        Ok(fresh(One { counter: value, as_of: answer.as_of.to_string() }))
    };
    api.respond(answer.await)
}

async fn many(
    State(api): State<Arc<Api>>,
    pairs: Result<Query<Vec<(String, String)>>, QueryRejection>,
    request: Request,
) -> Response {
    let answer = async {
        check_media_type(request.headers())?;
        let numbers = request::numbers(&query_string(pairs)?)?;
        let body = api.bodies.receive(request).await.map_err(Problem::refused)?;
        let query = request::query(&body.bytes)?;
        drop(body.bytes);
        // The names that were asked for take no more than the body did, whose room they keep.
        let asked = body.room;
        let answer = api.reads()?.counters(&query.counters, &query.after).await?;
        let mut values = query.counters.iter().zip(&answer.totals);
        let item = |place| match query.odd.get(&place) {
            Some(odd) => Item::odd(odd),
            None => {
                let (counter, total) = values.next().expect("each counter is odd or has a total");
                Item::new(counter, *total, numbers)
            }
        };
        let counters = (0..query.counters.len() + query.odd.len()).map(item).collect();
        let answer = Many { counters, as_of: answer.as_of.to_string() };
        let answer = serde_json::to_vec(&answer).expect("counters are JSON");
        drop(asked);
        let room = api.bodies.take(answer.len()).map_err(Problem::refused)?;
        let media_type = HeaderValue::from_static("application/json");
        let headers = [NOT_KEPT, (header::CONTENT_TYPE, media_type)];
        Ok((headers, room.hold(answer)).into_response())
    };
    api.respond(answer.await)
}

async fn verified(State(api): State<Arc<Api>>) -> Response {
    let detail = "Kafka has not said yet how far the counts are proven";
    let answer = api.verified.answer().ok_or_else(|| Problem::new(Code::NotReady, detail));
    api.respond(answer.map(fresh))
}

fn fresh(body: impl Serialize) -> Response {
    ([NOT_KEPT], Json(body)).into_response()
}

fn query_string(
    pairs: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Vec<(String, String)>, Problem> {
    let Query(pairs) = pairs.map_err(|rejection| invalid("query", &rejection.body_text()))?;
    Ok(pairs)
}

fn invalid(field: &str, reason: &str) -> Problem {
    request::Error::invalid(field, reason).into()
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    if essence(given).as_deref() == Some("application/json") {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, format!("{given:?} is not application/json")))
}
