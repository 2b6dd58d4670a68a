//! Stops and starts.

use std::{process::Command, time::Duration};

use crate::{
    library,
    process::{Options, Server},
};

const PATIENCE: Duration = Duration::from_secs(20);
const RUNNING: &str =
    "SELECT count() FROM system.processes WHERE query LIKE '%sleep%' AND query NOT LIKE '%LIKE%'";

async fn until_running(server: &Server) {
    while server.ok(&[], RUNNING).await.trim() != "1" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_stop_lets_statements_finish_and_a_restart_finds_the_data() {
    let server = Server::start();
    server.ok(&[], "CREATE DATABASE d").await;
    server.ok(&[], "CREATE TABLE d.t (a UInt64) ENGINE = MergeTree ORDER BY a").await;
    server.ok(&[("session_id", "idle")], "SELECT 1").await;
    let slow = server.post(&[], "INSERT INTO d.t SELECT number + sleep(1) FROM numbers(1000)");
    let stop = async {
        until_running(&server).await;
        server.terminate();
    };
    let (inserted, ()) = tokio::join!(slow, stop);
    assert_eq!(inserted.status, 200, "{}", inserted.text());
    let (status, data) = server.wait(PATIENCE);
    assert!(status.success(), "{status}");

    let server = Server::start_on(data, Options::default());
    assert_eq!(server.ok(&[], "SELECT count(), sum(a) FROM d.t").await, "1000\t499500\n");
}

#[tokio::test]
async fn a_statement_that_outlasts_the_drain_is_killed() {
    let server = Server::start_with(Options { drain_seconds: 1, ..Options::default() });
    let endless =
        server.post(&[], "SELECT sleepEachRow(1) FROM numbers(60) SETTINGS max_block_size = 1");
    let stop = async {
        until_running(&server).await;
        server.terminate();
    };
    let (killed, ()) = tokio::join!(endless, stop);
    assert_eq!(killed.header("x-clickhouse-exception-code"), "394");
    let (status, _) = server.wait(PATIENCE);
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_second_engine_on_the_same_data_is_refused() {
    let server = Server::start();
    let example =
        std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/serve");
    let second = Command::new(example)
        .args([library::path(), server.data.path()])
        .arg("127.0.0.1:0")
        .output()
        .expect("start a second server");
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("another engine may be using the folder"), "{text}");
    assert_eq!(server.ok(&[], "SELECT 1").await, "1\n");
}
