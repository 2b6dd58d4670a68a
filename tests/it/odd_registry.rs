//! A registry that says what the real one says, but for some schemas.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

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
    /// That it is not there, as by a replica that lags.
    Unknown,
    /// Nothing, for as long as the client waits.
    Nothing,
}

pub(crate) struct OddRegistry {
    pub(crate) url: String,
    odds: Odds,
    task: JoinHandle<()>,
}

/// By the schema's id.
type Odds = Arc<Mutex<BTreeMap<u32, Odd>>>;

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
        self.odds.lock().expect("no holder panics").insert(schema, odd);
    }

    /// From now on the real registry's answers are given.
    pub(crate) fn answer_all(&self) {
        self.odds.lock().expect("no holder panics").clear();
    }
}

impl Drop for OddRegistry {
    fn drop(&mut self) {
        self.task.abort();
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
    let odd = schema.and_then(|id| odds.lock().expect("no holder panics").get(&id).copied());
    match odd {
        Some(Odd::Unknown) => {
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
