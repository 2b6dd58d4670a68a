//! Clients that send slowly, or only begin to: hundreds of them take neither a service's places nor
//! its memory from the others.

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::service::{Service, ServiceProcess};
use crate::wait::until;

const AT_MS: i64 = 1_780_000_000_000;
const MIB: usize = 1 << 20;
const CLIENTS: usize = 300;
/// What docs/http.md states for so many connections is less, and what the clients send is more.
const MOST_BYTES: u64 = 200 << 20;

async fn begin(gateway: &ServiceProcess, bytes: usize) -> TcpStream {
    let url = gateway.url();
    let address = url.strip_prefix("http://").expect("it is plain HTTP");
    let mut client = TcpStream::connect(address).await.expect("it listens");
    let head = format!("POST /v1/increments HTTP/1.1\r\nhost: x\r\ncontent-length: {MIB}\r\n\r\n");
    client.write_all(head.as_bytes()).await.expect("it reads");
    client.write_all(&vec![b' '; bytes]).await.expect("it reads on, also what it has no room for");
    client
}

async fn post(gateway: &ServiceProcess, key: &str) -> (u16, serde_json::Value) {
    let url = format!("{}/v1/increments", gateway.url());
    let body = json!({ "namespace": "slow", "key": key, "at": AT_MS });
    gateway.call(gateway.http().post(url).json(&body)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_take_neither_places_nor_memory() {
    let mut tally = Installation::new("slow_clients").await;
    tally.allow("as many connections are open as may be");
    tally.configure(|config| {
        config.producer.max_in_flight = 10;
        config.producer.max_bytes_in_flight = 16 * MIB;
    });
    let mut services =
        [Service::Producer, Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    for service in &mut services {
        service.ready().await;
    }
    let gateway = &services[0];
    let mut model = Model::default();

    let mut slow = Vec::new();
    for _ in 0..CLIENTS {
        slow.push(begin(gateway, 1000).await);
    }
    let (status, answer) = post(gateway, "beside slow ones").await;
    assert_eq!(status, 200, "{answer}");
    model.add(&Event::new("slow", "beside slow ones", 1, AT_MS));

    let mut greedy = Vec::new();
    for _ in 0..CLIENTS {
        greedy.push(begin(gateway, MIB - 1).await);
    }
    let bytes = gateway.peak_memory_bytes();
    assert!(bytes < MOST_BYTES, "the gateway took {bytes} bytes");
    drop((slow, greedy));
    until("room for a request", async || match post(gateway, "after greedy ones").await {
        (200, _) => Ok(()),
        (503, problem) => Err(problem.to_string()),
        (status, problem) => panic!("{status}: {problem}"),
    })
    .await;
    model.add(&Event::new("slow", "after greedy ones", 1, AT_MS));

    let mut silent = Vec::new();
    for _ in 0..CLIENTS {
        silent.push(TcpStream::connect(gateway.health()).await.expect("it listens"));
    }
    let readyz = format!("http://{}/readyz", gateway.health());
    let refused = reqwest::get(&readyz).await.expect("it is answered");
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    drop(silent);
    until("health to be told again", async || {
        let status = reqwest::get(&readyz).await.expect("it is answered").status();
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;

    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
}
