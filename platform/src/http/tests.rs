//! The server against clients that are slow, silent, greedy or many.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::connection::Timeouts;
use super::*;

const GET: &[u8] = b"GET /here HTTP/1.1\r\nhost: x\r\n\r\n";
/// Long enough for whatever is expected to happen at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// Times that a test does not wait for.
const PATIENT: Timeouts =
    Timeouts { head: PATIENCE, idle: PATIENCE, write: PATIENCE, linger: PATIENCE };
const SHORT: Duration = Duration::from_millis(100);

/// A request to `/held`: it tells that it is there, and is answered once it is released.
#[derive(Default)]
struct Held {
    arrived: Notify,
    release: Notify,
}

struct Served {
    address: SocketAddr,
    held: Arc<Held>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Served {
    async fn new(max_connections: usize, timeouts: Timeouts) -> Served {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "a test").await.unwrap();
        let address = listener.local_addr().unwrap();
        let held = Arc::<Held>::default();
        let hold = async |State(held): State<Arc<Held>>| {
            held.arrived.notify_one();
            held.release.notified().await;
            "released"
        };
        let routes = Router::new()
            .route("/here", get(async || "here"))
            .route("/held", get(hold))
            .route("/much", get(async || Body::from(vec![b'x'; 64 << 20])))
            .route("/refused", post(async || StatusCode::PAYLOAD_TOO_LARGE))
            .with_state(Arc::clone(&held));
        let retry = [(header::RETRY_AFTER, "1")];
        let over_limit =
            Router::new().fallback(async move || (StatusCode::SERVICE_UNAVAILABLE, retry));
        let shutdown = CancellationToken::new();
        let server = Server::new(routes, over_limit, max_connections).with_timeouts(timeouts);
        let server = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { server.serve(listener, &shutdown, std::future::pending()).await }
        });
        Served { address, held, shutdown, server }
    }

    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// The status of an answer on a connection of its own.
    async fn status(&self) -> String {
        let mut client = self.connect().await;
        client.send(b"GET /here HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        client.rest().await.lines().next().unwrap_or_default().to_owned()
    }

    async fn end(self) {
        self.shutdown.cancel();
        within(self.server).await.unwrap();
    }
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        within(self.0.write_all(bytes)).await.unwrap();
    }

    /// Everything until the server ends its side.
    async fn rest(&mut self) -> String {
        let mut text = String::new();
        within(self.0.read_to_string(&mut text)).await.unwrap();
        text
    }

    /// The head of an answer, and a body of `length` bytes after it.
    async fn answer(&mut self, length: usize) -> String {
        let mut text = Vec::new();
        while !text.windows(4).any(|end| end == b"\r\n\r\n") {
            text.push(within(self.0.read_u8()).await.unwrap());
        }
        let start = text.len();
        text.resize(start + length, 0);
        within(self.0.read_exact(&mut text[start..])).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    /// Waits until the server is done with the connection, whichever way it ends.
    async fn closed(mut self) {
        let mut discarded = vec![0; 64 << 10];
        let closed = async { while matches!(self.0.read(&mut discarded).await, Ok(1..)) {} };
        within(closed).await;
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it happens at all")
}

#[tokio::test]
async fn a_head_that_does_not_arrive_gives_its_place_to_others() {
    let served = Served::new(1, Timeouts { head: SHORT, ..PATIENT }).await;
    let silent = served.connect().await;
    silent.closed().await;
    let mut slow = served.connect().await;
    slow.send(b"GET /here HTTP/1.1\r\nhost:").await;
    slow.closed().await;
    // On a connection that was used before, too.
    let mut slow = served.connect().await;
    slow.send(GET).await;
    assert!(slow.answer(4).await.ends_with("here"));
    slow.send(b"GET /here").await;
    slow.closed().await;
    assert_eq!(served.status().await, "HTTP/1.1 200 OK");
    served.end().await;
}

#[tokio::test]
async fn a_handler_may_take_longer_than_a_head() {
    let served = Served::new(1, Timeouts { head: SHORT, idle: SHORT, ..PATIENT }).await;
    let mut client = served.connect().await;
    client.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await;
    tokio::time::sleep(SHORT * 3).await;
    served.held.release.notify_one();
    assert!(client.answer(8).await.ends_with("released"));
    served.end().await;
}

#[tokio::test]
async fn a_connection_may_be_idle_for_longer_than_a_head_takes() {
    let served = Served::new(1, Timeouts { head: SHORT, ..PATIENT }).await;
    let mut client = served.connect().await;
    for _ in 0..2 {
        client.send(GET).await;
        assert!(client.answer(4).await.ends_with("here"));
        tokio::time::sleep(SHORT * 3).await;
    }
    served.end().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let served = Served::new(1, Timeouts { idle: SHORT, ..PATIENT }).await;
    let mut client = served.connect().await;
    client.send(GET).await;
    assert!(client.answer(4).await.ends_with("here"));
    client.closed().await;
    served.end().await;
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_told_when_to_come_again() {
    let served = Served::new(2, PATIENT).await;
    let mut held = [served.connect().await, served.connect().await];
    for client in &mut held {
        client.send(GET).await;
        client.answer(4).await;
    }
    let mut refused = served.connect().await;
    refused.send(GET).await;
    let answer = refused.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    drop(held);
    let served_again = async { while served.status().await != "HTTP/1.1 200 OK" {} };
    within(served_again).await;
    served.end().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let served = Served::new(1, PATIENT).await;
    let mut client = served.connect().await;
    let bytes = 64 << 20;
    let head = format!("POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n");
    client.send(head.as_bytes()).await;
    // All of it, before a byte of the answer is read.
    client.send(&vec![b'x'; bytes]).await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    drop(client);
    let free = async { while served.status().await != "HTTP/1.1 200 OK" {} };
    within(free).await;
    served.end().await;
}

#[tokio::test]
async fn a_head_that_cannot_be_read_is_answered_while_it_is_still_sent() {
    let served = Served::new(1, PATIENT).await;
    for (head, status) in [
        (b"nothing like a request\r\n".to_vec(), "400 Bad Request"),
        ([&GET[..GET.len() - 2], b"long: "].concat(), "431 Request Header Fields Too Large"),
    ] {
        let mut client = served.connect().await;
        client.send(&head).await;
        client.send(&vec![b'x'; 8 << 20]).await;
        let answer = client.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        drop(client);
    }
    served.end().await;
}

#[tokio::test]
async fn a_client_that_never_ends_its_request_is_let_go() {
    let served = Served::new(1, Timeouts { linger: SHORT, ..PATIENT }).await;
    let mut client = served.connect().await;
    client.send(b"POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx").await;
    assert!(client.answer(0).await.starts_with("HTTP/1.1 413 "));
    let free = async { while served.status().await != "HTTP/1.1 200 OK" {} };
    within(free).await;
    served.end().await;
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_let_go() {
    let served = Served::new(1, Timeouts { write: SHORT, ..PATIENT }).await;
    let free = async || while served.status().await != "HTTP/1.1 200 OK" {};
    let mut client = served.connect().await;
    client.send(b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n").await;
    within(free()).await;
    drop(client);

    let mut client = served.connect().await;
    client.send(b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let trickle = async {
        let mut some = vec![0; 1 << 20];
        loop {
            tokio::time::sleep(SHORT / 10).await;
            // What the kernel still has of a connection that is closed is read as well.
            let _ = client.0.read(&mut some).await;
        }
    };
    tokio::select! {
        () = within(free()) => {}
        () = trickle => {}
    }
    served.end().await;
}

#[tokio::test]
async fn a_request_in_progress_is_answered_and_an_idle_connection_closed_at_the_end() {
    let served = Served::new(2, PATIENT).await;
    let (mut idle, mut busy) = (served.connect().await, served.connect().await);
    idle.send(GET).await;
    idle.answer(4).await;
    busy.send(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await;
    within(served.held.arrived.notified()).await;
    served.shutdown.cancel();
    assert_eq!(idle.rest().await, "");
    served.held.release.notify_one();
    let answer = busy.rest().await;
    assert!(answer.ends_with("released"), "{answer}");
    assert!(TcpStream::connect(served.address).await.is_err(), "the port is closed");
    served.end().await;
}
