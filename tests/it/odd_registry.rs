//! A registry that says what the real one says, but for some schemas.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What is said of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Odd {
    /// That it is not there.
    Unknown,
    /// That it is not there, so many times, and then what the real one says: a replica that lags.
    UnknownFirst(u32),
    /// A status, and a body that is no JSON.
    Status(u16),
    /// Nothing, for as long as the client waits.
    Nothing,
}

pub(crate) struct OddRegistry {
    pub(crate) url: String,
    odds: Odds,
    task: JoinHandle<()>,
}

type Odds = Arc<Mutex<Answers>>;

#[derive(Default)]
struct Answers {
    /// By the schema's id.
    odds: BTreeMap<u32, Odd>,
    /// Whether it lost everything: it knows no id and no subject.
    is_empty: bool,
    /// Whether it takes requests and answers none.
    is_hung: bool,
    /// How often it was asked for each schema.
    asked: BTreeMap<u32, u32>,
}

impl OddRegistry {
    pub(crate) async fn start(real_url: &str) -> OddRegistry {
        let target = real_url.trim_end_matches('/').to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let odds = Odds::default();
        let app = Router::new().fallback(answer).with_state((target, Arc::clone(&odds)));
        let task =
            tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        OddRegistry { url, odds, task }
    }

    /// From now on this is what is said of the schema.
    pub(crate) fn answer(&self, schema: u32, odd: Odd) {
        self.answers().odds.insert(schema, odd);
    }

    /// From now on the real registry's answers are given.
    pub(crate) fn answer_all(&self) {
        self.answers().odds.clear();
    }

    /// From now on it has nothing at all, or again all that the real one has.
    pub(crate) fn empty(&self, is_empty: bool) {
        self.answers().is_empty = is_empty;
    }

    /// From now on it takes requests and answers none, or again all.
    pub(crate) fn hang(&self, is_hung: bool) {
        self.answers().is_hung = is_hung;
    }

    /// How often it was asked for the schema.
    pub(crate) fn asked(&self, schema: u32) -> u32 {
        self.answers().asked.get(&schema).copied().unwrap_or(0)
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.odds.lock().expect("no holder panics")
    }
}

impl Drop for OddRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Answers {
    /// What is said next, if it is not what the real registry says.
    fn next(&mut self, schema: Option<u32>) -> Option<Odd> {
        if let Some(id) = schema {
            *self.asked.entry(id).or_default() += 1;
        }
        if self.is_hung {
            return Some(Odd::Nothing);
        }
        if self.is_empty {
            return Some(Odd::Unknown);
        }
        let odd = self.odds.get_mut(&schema?)?;
        if let Odd::UnknownFirst(left) = odd {
            *left = left.checked_sub(1)?;
        }
        Some(*odd)
    }
}

async fn answer(
    State((target, odds)): State<(String, Odds)>,
    method: Method,
    uri: Uri,
    mut headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut response = Response::new(Body::empty());
    let schema = uri.path().strip_prefix("/schemas/ids/").and_then(|id| id.parse::<u32>().ok());
    let odd = odds.lock().expect("no holder panics").next(schema);
    match odd {
        Some(Odd::Status(status)) => {
            *response.status_mut() = StatusCode::from_u16(status).expect("it is one");
            *response.body_mut() = Body::from("<html>the gateway's own page</html>");
            return response;
        }
        Some(Odd::Unknown | Odd::UnknownFirst(_)) => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            *response.body_mut() =
                Body::from(r#"{"error_code": 40403, "message": "Schema not found"}"#);
            return response;
        }
        Some(Odd::Nothing) => std::future::pending().await,
        None => {}
    }
    headers.remove(header::HOST);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client is made");
    let call = client.request(method, format!("{target}{uri}")).headers(headers).body(body);
    let answered = call.send().await.expect("the registry answers");
    *response.status_mut() = answered.status();
    *response.body_mut() =
        Body::from(answered.bytes().await.expect("the registry answers in full"));
    response
}
