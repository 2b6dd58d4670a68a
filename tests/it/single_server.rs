//! Tally counts into one server's own table: what has several servers, or another engine, is
//! refused by everything that would read or write it, and named.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::engine::Engine;
use crate::installation::Installation;
use crate::service::Service;

/// Sends each connection to the next of its servers.
struct Balancer {
    url: String,
    task: JoinHandle<()>,
}

impl Balancer {
    async fn start(servers: [SocketAddr; 2]) -> Balancer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for server in servers.into_iter().cycle() {
                let (mut client, _) = listener.accept().await.expect("it takes connections");
                connections.spawn(async move {
                    // What goes wrong on either side is for the sides to notice.
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        copy_bidirectional(&mut client, &mut server).await.ok();
                    }
                });
            }
        });
        Balancer { url: format!("http://{address}"), task }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The sink ends, and says why; so do `init` and `verify`.
async fn everything_refuses(tally: &Installation, store: &str, why: &str) {
    let environment = [("TALLY_STORE__URL", store)];
    let mut sink = tally.start_with(Service::Sink, "a", &environment);
    let status = sink.ended().await;
    assert_eq!(status.code(), Some(70), "{status}");
    sink.logs(why).await;
    for command in [&["init"][..], &["reconciler", "verify"]] {
        let ended = tally.tally_in(&environment, command).await.expect_code(69);
        assert!(ended.stderr.contains(why), "{command:?}: {}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_before_several_servers_is_refused() {
    let mut tally = Installation::bare("balanced");
    tally.allow("leads to several servers");
    let servers = [Engine::start().await, Engine::start().await];
    for server in &servers {
        tally.configure(|config| config.store.url = server.url());
        tally.tally(&["init"]).await.expect_code(0);
    }
    let addresses = servers
        .each_ref()
        .map(|server| server.url()["http://".len()..].parse().expect("it is one"));
    let balancer = Balancer::start(addresses).await;
    let why = format!("store.url {} leads to several servers: ", balancer.url);
    everything_refuses(&tally, &balancer.url, &why).await;
    let environment = [("TALLY_STORE__URL", balancer.url.as_str())];
    let mut reader = tally.start_with(Service::Reader, "a", &environment);
    reader.logs(&why).await;
    assert!(reader.readiness().await.expect_err("it is not ready").contains(&why));
    reader.terminate().await;

    // Either of them alone will do.
    let mut sink = tally.start(Service::Sink, "alone");
    sink.ready().await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_another_engine_is_refused() {
    let mut tally = Installation::new("engines").await;
    tally.allow("has the engine");
    tally.sql("RENAME TABLE counts TO kept").await;
    let store = tally.config.store.url.clone();
    let table = format!("{}.counts", tally.config.store.database);
    for (engine, made) in [
        ("Buffer", "TABLE counts AS kept ENGINE = Buffer('', kept, 1, 9, 99, 9, 99, 999, 9999)"),
        ("Merge", "TABLE counts AS kept ENGINE = Merge(currentDatabase(), '^kept$')"),
        ("Null", "TABLE counts AS kept ENGINE = Null"),
        ("View", "VIEW counts AS SELECT * FROM kept"),
        (
            "MergeTree",
            "TABLE counts AS kept ENGINE = MergeTree PARTITION BY partition \
             ORDER BY (namespace, key, bucket)",
        ),
    ] {
        tally.sql(&format!("CREATE {made}")).await;
        let why = format!("table {table} in ClickHouse has the engine {engine}, which ");
        everything_refuses(&tally, &store, &why).await;
        tally.sql("DROP TABLE counts").await;
    }
    tally.sql("RENAME TABLE kept TO counts").await;
    tally.tally(&["init"]).await.expect_code(0);
}
