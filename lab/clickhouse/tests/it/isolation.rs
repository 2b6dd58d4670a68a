//! What one call sets reaches no other, unless they share a session.

use crate::process::Server;

const SETTING: &str = "SELECT getSetting('max_block_size'), currentDatabase()";

#[tokio::test]
async fn settings_and_databases_end_with_their_call() {
    let server = Server::start();
    let default = server.ok(&[], SETTING).await;
    server.ok(&[], "CREATE DATABASE d").await;
    assert_eq!(server.ok(&[("max_block_size", "77"), ("database", "d")], SETTING).await, "77\td\n");
    server.ok(&[], "SET max_block_size = 78").await;
    server.ok(&[], "USE d").await;
    server.ok(&[], "CREATE TEMPORARY TABLE x (a UInt8)").await;
    for _ in 0..20 {
        assert_eq!(server.ok(&[], SETTING).await, default);
    }
    assert_eq!(server.code(&[], "SELECT * FROM x").await, 60);
}

#[tokio::test]
async fn a_session_keeps_what_its_statements_set_and_not_what_its_calls_set() {
    let server = Server::start();
    let session = ("session_id", "s");
    let default = server.ok(&[session], SETTING).await;
    server.ok(&[], "CREATE DATABASE d").await;
    assert_eq!(
        server.ok(&[session, ("max_block_size", "77"), ("database", "d")], SETTING).await,
        "77\td\n"
    );
    assert_eq!(server.ok(&[session], SETTING).await, default);

    server.ok(&[session], "SET max_block_size = 78").await;
    server.ok(&[session], "USE d").await;
    server.ok(&[session], "CREATE TEMPORARY TABLE x (a UInt8)").await;
    server.ok(&[session], "INSERT INTO x VALUES (5)").await;
    let call = [session, ("max_block_size", "79"), ("database", "default"), ("max_threads", "1")];
    assert_eq!(server.ok(&call, SETTING).await, "79\tdefault\n");
    assert_eq!(server.code(&call, "SELECT throwIf(1)").await, 395);
    assert_eq!(server.ok(&[session], SETTING).await, "78\td\n");
    assert_eq!(server.ok(&[session], "SELECT * FROM x").await, "5\n");
    assert_eq!(server.code(&[("session_id", "other")], "SELECT * FROM x").await, 60);
    assert_eq!(
        server.code(&[("session_id", "new"), ("session_check", "1")], "SELECT 1").await,
        372
    );
}

#[tokio::test]
async fn a_session_in_use_is_locked() {
    let server = Server::start();
    let session = [("session_id", "s")];
    let slow = server.ok(&session, "SELECT sleep(2)");
    let second = async {
        while server.ok(&[], "SELECT count() FROM system.processes").await.trim() != "2" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        server.code(&session, "SELECT 1").await
    };
    let (_, code) = tokio::join!(slow, second);
    assert_eq!(code, 373);
}
