use std::net::SocketAddr;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Health, serve};
use crate::http::{BindError, bind};

struct Served {
    addr: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Served {
    async fn new(health: &Health, metrics: prometheus::Registry) -> Served {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "a test").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, health.clone(), metrics, shutdown.clone()));
        Served { addr, shutdown, server }
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.addr)).await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn end(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.server).await;
        ended.expect("the server ends after shutdown").unwrap();
    }
}

#[tokio::test]
async fn ready_is_when_every_condition_holds() {
    let health = Health::new();
    let served = Served::new(&health, prometheus::Registry::new()).await;
    let (status, text) = served.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "no condition is declared yet");

    let assignment = health.condition("assignment");
    let log = health.condition("log");
    log.set(true, "");
    let (status, text) = served.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "assignment: not yet");

    assignment.set(true, "");
    assert_eq!(served.get("/readyz").await, (StatusCode::OK, "ready".to_owned()));

    assignment.set(false, "revoked");
    log.set(false, "no broker answers");
    let (status, text) = served.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "assignment: revoked\nlog: no broker answers");

    drop((assignment, log));
    assert!(health.ready().is_err(), "a dropped condition keeps what it said last");
    served.end().await;
}

#[tokio::test]
async fn live_is_while_no_heartbeat_is_late() {
    let health = Health::new();
    let served = Served::new(&health, prometheus::Registry::new()).await;
    assert_eq!(served.get("/livez").await, (StatusCode::OK, "alive".to_owned()));
    let fold = health.heartbeat("fold-0", Duration::from_secs(3600));
    let commit = health.heartbeat("commit-0", Duration::ZERO);
    assert!(wait_for(|| health.alive().is_err()).await);
    let (status, text) = served.get("/livez").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.starts_with("commit-0: silent for ") && !text.contains("fold-0"), "{text}");
    drop(commit);
    assert_eq!(served.get("/livez").await.0, StatusCode::OK);
    drop(fold);
    served.end().await;
}

async fn wait_for(mut holds: impl FnMut() -> bool) -> bool {
    let held = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), held).await.is_ok()
}

#[test]
fn a_beat_ends_a_silence() {
    let health = Health::new();
    let fold = health.heartbeat("fold", Duration::from_millis(1500));
    let beat = |at_ms| fold.state.last_ms.store(at_ms, std::sync::atomic::Ordering::Relaxed);
    beat(1000);
    assert_eq!(health.alive_after(2500), Ok(()));
    assert_eq!(
        health.alive_after(2501),
        Err("fold: silent for 1.501s, at most 1.5s expected".to_owned())
    );
    beat(2400);
    assert_eq!(health.alive_after(2501), Ok(()));
    beat(0);
    fold.beat();
    assert_eq!(health.alive(), Ok(()));
}

#[test]
fn a_loop_that_panics_is_missed() {
    let health = Health::new();
    let heartbeat = health.heartbeat("fold", Duration::from_secs(1));
    let looped = std::thread::spawn(move || {
        heartbeat.beat();
        panic!("a panic that the test wants");
    });
    assert!(looped.join().is_err());
    assert!(health.alive_after(3_600_000).unwrap_err().starts_with("fold: silent"));
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let metrics = prometheus::Registry::new();
    let counter = prometheus::IntCounter::new("tally_test_things_total", "Things.").unwrap();
    metrics.register(Box::new(counter.clone())).unwrap();
    counter.inc_by(4);
    let served = Served::new(&Health::new(), metrics).await;
    let answer = reqwest::get(format!("http://{}/metrics", served.addr)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4");
    let text = answer.text().await.unwrap();
    assert!(text.lines().any(|line| line == "tally_test_things_total 4"), "{text}");
    served.end().await;
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_purpose() {
    let taken = bind("127.0.0.1:0".parse().unwrap(), "the first").await.unwrap();
    let addr = taken.local_addr().unwrap();
    let error = bind(addr, "health and metrics").await.unwrap_err();
    assert_eq!(error.to_string(), format!("listen on {addr} for health and metrics"));
    assert!(
        matches!(error, BindError { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse)
    );
}

#[tokio::test]
async fn a_client_that_says_nothing_does_not_hold_up_the_end() {
    let served = Served::new(&Health::new(), prometheus::Registry::new()).await;
    let mut client = tokio::net::TcpStream::connect(served.addr).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut client, b"GET /livez HTTP/1.1\r\nhost:")
        .await
        .unwrap();
    served.get("/livez").await;
    served.end().await;
}
