//! An HTTP proxy before the store that looks at each call, and may change it, hold it, or answer in
//! the store's place.
//!
//! ```text
//!  a service ──► Interceptor: rule(call) ──► Forward ──► the store ──► its answer, noted
//!                                       ├──► ForwardAfter(gate): held until the gate opens
//!                                       └──► Answer: the store hears nothing of it
//! ```

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const EXCEPTION_CODE: &str = "x-clickhouse-exception-code";

/// What a call asks: the pairs of its URL, the statement among them.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pairs: Vec<(String, String)>,
}

impl Call {
    pub(crate) fn statement(&self) -> &str {
        self.get("query").unwrap_or("")
    }

    /// Whether it stores a batch.
    pub(crate) fn is_block(&self) -> bool {
        self.statement().starts_with("INSERT INTO counts ")
    }

    /// Whether it stores a batch of this partition.
    pub(crate) fn is_block_of(&self, partition: i32) -> bool {
        self.is_block() && self.statement().contains(&format!("toUInt32({partition})"))
    }

    /// Whether it inserts anything, the start-up proof's blocks included.
    pub(crate) fn is_insert(&self) -> bool {
        self.statement().starts_with("INSERT INTO ")
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.pairs.retain(|(found, _)| found != name);
        self.pairs.push((name.to_owned(), value.to_owned()));
    }
}

pub(crate) enum ProxyAction {
    Forward,
    ForwardAfter(CancellationToken),
    Answer { status: u16, exception_code: Option<u32>, body: String },
}

/// What the store answered to a call that was forwarded.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) call: Call,
    pub(crate) status: u16,
    pub(crate) exception_code: Option<u32>,
}

type Rule = dyn Fn(&mut Call) -> ProxyAction + Send + Sync;

pub(crate) struct Interceptor {
    port: u16,
    answered: Arc<Mutex<Vec<Answered>>>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    http: reqwest::Client,
    target: Url,
    rule: Arc<Rule>,
    answered: Arc<Mutex<Vec<Answered>>>,
}

impl Interceptor {
    pub(crate) async fn start(
        target: &str,
        rule: impl Fn(&mut Call) -> ProxyAction + Send + Sync + 'static,
    ) -> Interceptor {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let port = listener.local_addr().expect("it listens").port();
        let answered = Arc::new(Mutex::default());
        let shared = Shared {
            http: reqwest::Client::builder().no_proxy().build().expect("a client is made"),
            target: Url::parse(target).expect("the store has a URL"),
            rule: Arc::new(rule),
            answered: Arc::clone(&answered),
        };
        let app =
            Router::new().fallback(handle).layer(DefaultBodyLimit::disable()).with_state(shared);
        let task =
            tokio::spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Interceptor { port, answered, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the store answered so far.
    pub(crate) fn answered(&self) -> Vec<Answered> {
        self.answered.lock().expect("no holder panics").clone()
    }
}

impl Drop for Interceptor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn handle(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut url = shared.target.clone();
    url.set_query(uri.query());
    let mut call = Call {
        pairs: url.query_pairs().map(|(name, value)| (name.into(), value.into())).collect(),
    };
    match (shared.rule)(&mut call) {
        ProxyAction::Answer { status, exception_code, body } => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            if let Some(code) = exception_code {
                response.headers_mut().insert(EXCEPTION_CODE, HeaderValue::from(code));
            }
            return response;
        }
        ProxyAction::ForwardAfter(gate) => gate.cancelled().await,
        ProxyAction::Forward => {}
    }
    url.query_pairs_mut().clear().extend_pairs(&call.pairs);
    shared.forward(method, url, headers, body, call).await
}

impl Shared {
    async fn forward(
        &self,
        method: Method,
        url: Url,
        mut headers: HeaderMap,
        body: Bytes,
        call: Call,
    ) -> Response {
        for name in [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
            headers.remove(name);
        }
        let sent = self.http.request(method, url).headers(headers).body(body).send().await;
        let Ok(answer) = sent else { return bad_gateway() };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let Ok(body) = answer.bytes().await else { return bad_gateway() };
        let exception_code =
            headers.get(EXCEPTION_CODE).and_then(|code| code.to_str().ok()?.parse().ok());
        let noted = Answered { call, status: status.as_u16(), exception_code };
        self.answered.lock().expect("no holder panics").push(noted);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response.headers_mut().remove(header::TRANSFER_ENCODING);
        response
    }
}

fn bad_gateway() -> Response {
    let mut response = Response::new(Body::from("the store does not answer"));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
