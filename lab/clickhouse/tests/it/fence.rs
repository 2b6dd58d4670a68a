//! The fenced insert: an `INSERT … SELECT … FROM input(…)` that checks on the server whether it
//! may.

use clickhouse::{Compression, Row};
use serde::Deserialize;

use crate::process::Server;

const ROWS: u64 = 100_000;

#[derive(Row, Deserialize, Debug, PartialEq)]
struct Part {
    rows: u64,
    high: u64,
}

async fn table(server: &Server) -> clickhouse::Client {
    let client = server.client().with_compression(Compression::None);
    client
        .query(
            "CREATE TABLE t (partition UInt16, key String, sum Int64,
                             high SimpleAggregateFunction(max, UInt64))
             ENGINE = SummingMergeTree PARTITION BY partition ORDER BY (partition, key)
             SETTINGS non_replicated_deduplication_window = 1000",
        )
        .execute()
        .await
        .unwrap();
    client
}

/// Inserts the batch if the sum is `from`.
async fn insert(client: &clickhouse::Client, from: u64, token: &str) -> Result<(), String> {
    let mut insert = client
        .insert_formatted_with(format!(
            "INSERT INTO t (partition, key, sum, high)
             SELECT partition, key, sum, 7 AS high
             FROM input('partition UInt16, key String, sum Int64')
             WHERE throwIf((SELECT sum(sum) FROM t WHERE partition = 3) != {from}, 'fence') = 0
             ORDER BY ALL
             FORMAT RowBinary"
        ))
        .with_setting("insert_deduplication_token", token)
        .with_setting("deduplicate_insert_select", "force_enable")
        .with_setting("async_insert", "0")
        .with_setting("wait_end_of_query", "1")
        .with_setting("max_threads", "1")
        .with_setting("max_insert_threads", "1")
        .with_setting("max_block_size", "1000000")
        .with_setting("min_insert_block_size_rows", "1000000")
        .with_setting("min_insert_block_size_bytes", "0");
    let rows: Vec<u8> =
        (0..ROWS).flat_map(|id| row_binary(3, &format!("key:{id:08}"), 1)).collect();
    for chunk in rows.chunks(1 << 18) {
        insert.send(chunk.to_vec().into()).await.map_err(|error| error.to_string())?;
    }
    insert.end().await.map_err(|error| error.to_string())
}

fn row_binary(partition: u16, key: &str, sum: i64) -> Vec<u8> {
    let mut bytes = partition.to_le_bytes().to_vec();
    bytes.push(u8::try_from(key.len()).expect("a short key"));
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

async fn parts(client: &clickhouse::Client) -> Vec<Part> {
    client
        .query("SELECT count() AS rows, max(high) AS high FROM t GROUP BY _part ORDER BY _part")
        .fetch_all()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_fenced_insert_goes_in_once_as_one_part() {
    let server = Server::start();
    let client = table(&server).await;
    let once = [Part { rows: ROWS, high: 7 }];

    insert(&client, 0, "batch-1").await.unwrap();
    assert_eq!(parts(&client).await, once);

    let refused = insert(&client, 0, "batch-1").await.unwrap_err();
    assert!(refused.contains("Code: 395."), "{refused}");
    assert_eq!(parts(&client).await, once);

    insert(&client, ROWS, "batch-1").await.expect("dropped by its token, without an error");
    assert_eq!(parts(&client).await, once);

    insert(&client, ROWS, "batch-2").await.unwrap();
    assert_eq!(parts(&client).await.len(), 2);
}

#[tokio::test]
async fn fenced_inserts_that_race_go_in_once() {
    let server = Server::start();
    let client = table(&server).await;
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = client.clone();
        racers.spawn(async move { insert(&client, 0, "batch-1").await });
    }
    let outcomes = racers.join_all().await;
    for refused in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(refused.contains("Code: 395."), "{refused}");
    }
    assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
    assert_eq!(parts(&client).await, [Part { rows: ROWS, high: 7 }]);
}
