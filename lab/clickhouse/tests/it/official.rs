//! The official `clickhouse` crate, unchanged.

use clickhouse::{Compression, Row, error::Error};
use serde::{Deserialize, Serialize};

use crate::process::Server;

#[derive(Row, Serialize, Deserialize, Debug, Clone, PartialEq)]
struct Event {
    id: u64,
    name: String,
    delta: i64,
}

fn events(count: u64) -> Vec<Event> {
    (0..count).map(|id| Event { id, name: format!("it's \\ {id}"), delta: -(id as i64) }).collect()
}

#[tokio::test]
async fn rows_come_back_as_they_went_in() {
    let server = Server::start();
    for (database, compression, validation) in [
        ("plain", Compression::None, true),
        ("lz4", Compression::Lz4, true),
        ("raw", Compression::Lz4, false),
    ] {
        server.ok(&[], &format!("CREATE DATABASE {database}")).await;
        let client = server
            .client()
            .with_user("default")
            .with_database(database)
            .with_compression(compression)
            .with_validation(validation);
        let table =
            "CREATE TABLE t (id UInt64, name String, delta Int64) ENGINE = MergeTree ORDER BY id";
        client.query(table).execute().await.unwrap();

        let expected = events(50_000);
        let mut insert =
            client.insert::<Event>("t").await.unwrap().with_setting("async_insert", "0");
        for event in &expected {
            insert.write(event).await.unwrap();
        }
        insert.end().await.unwrap();

        let got =
            client.query("SELECT ?fields FROM t ORDER BY id").fetch_all::<Event>().await.unwrap();
        assert_eq!(got, expected, "{database}");
    }
}

#[tokio::test]
async fn parameters_settings_and_summary_work() {
    let server = Server::start();
    let client = server.client();
    let value: String = client
        .query(
            "SELECT concat({a:String}, toString({b:Int32}), ?, \
             getSetting('max_block_size')::String)",
        )
        .bind("'?'")
        .param("a", "tab\tquote'")
        .param("b", -3)
        .with_setting("max_block_size", "123")
        .fetch_one()
        .await
        .unwrap();
    assert_eq!(value, "tab\tquote'-3'?'123");

    let mut rows = client.query("SELECT number FROM numbers(1000)").fetch::<u64>().unwrap();
    let mut sum = 0;
    while let Some(number) = rows.next().await.unwrap() {
        sum += number;
    }
    assert_eq!(sum, 499_500);
    let summary = rows.summary().expect("a summary");
    assert_eq!((summary.read_rows(), summary.result_rows()), (Some(1000), Some(1000)));
}

#[tokio::test]
async fn exceptions_arrive_with_their_code_and_text() {
    let server = Server::start();
    for compression in [Compression::None, Compression::Lz4] {
        let client = server.client().with_compression(compression);
        match client.query("SELECT * FROM nope").fetch_all::<u64>().await.unwrap_err() {
            Error::BadResponse(text) => {
                assert!(text.starts_with("Code: 60. DB::Exception: "), "{text}");
                assert!(text.contains("(UNKNOWN_TABLE) (version "), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}
