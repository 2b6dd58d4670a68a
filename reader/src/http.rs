//! The calls, and the answers to all others.

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Serialize, Serializer};
use tally_platform::http::{Refusal, essence, with_edge};
use tally_platform::problem::Code as _;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::Total;
use crate::counter::Counter;
use crate::metrics::Metrics;
use crate::problem::{Code, Problem};
use crate::reads::Reads;
use crate::request::{self, Numbers, OddCounter};
use crate::verified::LastVerified;

/// Room for as many counters as one query may ask for, their names as long as they may be.
const BODY_LIMIT_BYTES: usize = 16 << 20;

/// What the bodies of all queries in progress may come to. A body whose length is not announced
/// counts as the longest.
const BODIES_KIB: u32 = 64 << 10;

const OVERFLOW: &str = "what ClickHouse has of the counter comes to more than 128 bits";

/// What all requests share.
pub(crate) struct Api {
    reads: OnceLock<Reads>,
    pub(crate) verified: LastVerified,
    /// In KiB.
    bodies: Semaphore,
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
        let bodies = Semaphore::new(BODIES_KIB as usize);
        Api { reads: OnceLock::new(), verified: LastVerified::default(), bodies, metrics }
    }

    /// Answers reads from now on.
    pub(crate) fn open(&self, reads: Reads) {
        self.reads.get_or_init(|| reads);
    }

    fn reads(&self) -> Result<&Reads, Problem> {
        let detail = "the log or the store has not answered yet";
        self.reads.get().ok_or_else(|| Problem::new(Code::NotReady, detail))
    }

    /// Room for a body, until the request is answered.
    fn room(&self, headers: &HeaderMap) -> Result<SemaphorePermit<'_>, Problem> {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let bytes = announced.and_then(|length| length.parse().ok()).unwrap_or(BODY_LIMIT_BYTES);
        // What is longer is refused before it is read.
        let kib = u32::try_from(bytes.min(BODY_LIMIT_BYTES).div_ceil(1024)).unwrap_or(BODIES_KIB);
        let detail = "the bodies of other queries take all the room there is for them";
        self.bodies.try_acquire_many(kib).map_err(|_| Problem::new(Code::Overloaded, detail))
    }

    fn respond(&self, answer: Result<Response, Problem>) -> Response {
        self.metrics
            .answered(answer.as_ref().map_or_else(|problem| problem.code.name(), |_| "answered"));
        answer.unwrap_or_else(IntoResponse::into_response)
    }
}

pub(crate) fn routes(api: Arc<Api>) -> Router {
    let routes = Router::new()
        .route("/v1/counters/{namespace}/{key}", get(one))
        .route("/v1/counters/query", post(many))
        .route("/v1/verified", get(verified));
    with_edge::<Code, _>(routes, BODY_LIMIT_BYTES).with_state(api)
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
        let _room = api.room(request.headers())?;
        let body = Bytes::from_request(request, &()).await.map_err(unread)?;
        let query = request::query(&body)?;
        drop(body);
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
        Ok(fresh(Many { counters, as_of: answer.as_of.to_string() }))
    };
    api.respond(answer.await)
}

async fn verified(State(api): State<Arc<Api>>) -> Response {
    let detail = "Kafka has not said yet how far the counts are proven";
    let answer = api.verified.answer().ok_or_else(|| Problem::new(Code::NotReady, detail));
    api.respond(answer.map(fresh))
}

/// A count is out of date as soon as it is told.
fn fresh(body: impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response()
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

fn unread(rejection: BytesRejection) -> Problem {
    Problem::refused(Refusal::of_body(&rejection, BODY_LIMIT_BYTES))
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    if essence(given).as_deref() == Some("application/json") {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, format!("{given:?} is not application/json")))
}
