//! The interface itself, call by call.

use crate::process::{Options, Reply, Server};

const TABLE: &str = "CREATE TABLE t (a UInt32, b String) ENGINE = MergeTree ORDER BY a";
const ALL: &str = "SELECT * FROM t ORDER BY a";

#[tokio::test]
async fn ping_and_root_answer_ok() {
    let server = Server::start();
    for path in ["/ping", "/"] {
        let reply = Reply::of(reqwest::Client::new().get(format!("{}{path}", server.url))).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "Ok.\n"), "{path}");
    }
}

#[tokio::test]
async fn answers_carry_clickhouses_headers() {
    let server = Server::start();
    let reply =
        server.post(&[("query_id", "mine"), ("default_format", "CSV")], "SELECT 1, 'a'").await;
    assert_eq!(reply.text(), "1,\"a\"\n");
    assert_eq!(reply.header("x-clickhouse-query-id"), "mine");
    assert_eq!(reply.header("x-clickhouse-format"), "CSV");
    assert_eq!(
        reply.header("x-clickhouse-timezone"),
        server.ok(&[], "SELECT timezone()").await.trim()
    );
    assert_eq!(
        reply.header("x-clickhouse-server-display-name"),
        server.ok(&[], "SELECT hostName()").await.trim()
    );
    assert!(reply.header("x-clickhouse-summary").contains(r#""result_rows":"1""#));

    let reply = server.post(&[], "SELECT 1 AS x FORMAT JSONEachRow").await;
    assert_eq!(reply.header("x-clickhouse-format"), "JSONEachRow");
    assert_eq!(reply.text(), "{\"x\":1}\n");
    assert_eq!(reply.header("x-clickhouse-query-id").len(), 36);
}

#[tokio::test]
async fn exceptions_have_clickhouses_status_code_and_body() {
    let server = Server::start();
    for (sql, status, code, name) in [
        ("SELECT * FROM nope", 404, "60", "UNKNOWN_TABLE"),
        ("SELECT * FROM nope.nope", 404, "81", "UNKNOWN_DATABASE"),
        ("SELEC", 400, "62", "SYNTAX_ERROR"),
        ("SELECT 1; SELECT 2", 400, "62", "SYNTAX_ERROR"),
        ("", 400, "62", "SYNTAX_ERROR"),
        ("SELECT throwIf(1)", 500, "395", "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("INSERT INTO nope FORMAT CSV\n1", 404, "60", "UNKNOWN_TABLE"),
    ] {
        let reply = server.post(&[], sql).await;
        assert_eq!(
            (reply.status, reply.header("x-clickhouse-exception-code")),
            (status, code),
            "{sql}"
        );
        let text = reply.text();
        assert!(text.starts_with(&format!("Code: {code}. DB::Exception: ")), "{text}");
        assert!(text.contains(&format!("({name}) (version ")), "{text}");
    }
    assert_eq!(server.code(&[("no_such_setting", "1")], "SELECT 1").await, 115);
    assert_eq!(server.code(&[("database", "nope")], "SELECT 1").await, 81);
    assert_eq!(server.code(&[("user", "root")], "SELECT 1").await, 516);
}

#[tokio::test]
async fn inserts_take_their_data_from_url_and_body_in_any_format() {
    let server = Server::start();
    server.ok(&[], TABLE).await;
    server.ok(&[], "INSERT INTO t VALUES (1, 'a;b'),\n(2, 'it''s');").await;
    server.ok(&[("query", "INSERT INTO t VALUES")], "(3, 'c')").await;
    server.ok(&[("query", "INSERT INTO t")], "VALUES (4, 'd')").await;
    server
        .ok(&[], "INSERT INTO t FORMAT JSONEachRow\n{\"a\":5,\"b\":\"e\"}\n{\"a\":6,\"b\":\"f\"}\n")
        .await;
    server.ok(&[("query", "INSERT INTO t (b, a) FORMAT CSV")], "g,7\nh,8\n").await;
    server
        .ok(
            &[(
                "query",
                "INSERT INTO t SETTINGS max_threads = 1 FORMAT TSV SETTINGS max_threads=2",
            )],
            "9\ti\n",
        )
        .await;
    let native = server.post(&[], "SELECT toUInt32(10) AS a, 'j' AS b FORMAT Native").await.body;
    server.post(&[("query", "INSERT INTO t FORMAT Native")], native).await;
    let binary = [b"\x0b\0\0\0\x06".as_slice(), b"\xff;\n'--"].concat();
    server.post(&[("query", "INSERT INTO t FORMAT RowBinary")], binary).await;
    server.ok(&[("param_x", "12")], "INSERT INTO t SELECT {x:UInt32}, 'l'").await;
    assert_eq!(
        server.post(&[], "SELECT a, hex(b) FROM t ORDER BY a").await.text(),
        "1\t613B62\n2\t69742773\n3\t63\n4\t64\n5\t65\n6\t66\n7\t67\n8\t68\n9\t69\n10\t6A\n\
         11\tFF3B0A272D2D\n12\t6C\n"
    );
}

#[tokio::test]
async fn input_reads_each_calls_own_data() {
    let server = Server::start();
    server.ok(&[], TABLE).await;
    let insert = "INSERT INTO t SELECT a + {more:UInt32}, upper(b) \
                  FROM input('a UInt32, b String') FORMAT CSV";
    for (more, data) in [("0", "1,a\n"), ("10", "2,b\n3,c\n"), ("20", "")] {
        server.ok(&[("query", insert), ("param_more", more)], data).await;
    }
    server
        .ok(&[], "INSERT INTO t SELECT count() + 100, 'n' FROM input('a UInt8') FORMAT CSV\n1\n2\n")
        .await;
    server
        .ok(
            &[],
            "INSERT INTO t SELECT count() + 200, 'n' FROM input('a UInt8') FORMAT CSV\n1\n2\n3\n",
        )
        .await;
    assert_eq!(server.ok(&[], ALL).await, "1\tA\n12\tB\n13\tC\n102\tn\n203\tn\n");
    assert_eq!(
        server.code(&[], "INSERT INTO t SELECT * FROM input('a UInt32, b String')").await,
        477
    );
    assert_eq!(server.code(&[("query", insert), ("param_more", "1")], "x,y\n").await, 27);
}

#[tokio::test]
async fn a_get_changes_nothing() {
    let server = Server::start();
    let get = |sql: &str| {
        let url = reqwest::Url::parse_with_params(&server.url, [("query", sql)]).unwrap();
        Reply::of(reqwest::Client::new().get(url))
    };
    assert_eq!(get("SELECT 1").await.text(), "1\n");
    assert_eq!(get(TABLE).await.header("x-clickhouse-exception-code"), "164");
}

#[tokio::test]
async fn compressed_answers_are_blocks_that_an_insert_reads_again() {
    let server = Server::start();
    server.ok(&[], TABLE).await;
    let rows =
        "SELECT toUInt32(number) AS a, toString(number) AS b FROM numbers(300000) FORMAT RowBinary";
    let mut blocks = server.post(&[("compress", "1")], rows).await.body;
    let plain = server.post(&[], rows).await.body;
    assert!(
        blocks.len() < plain.len() && blocks[16] == 0x82,
        "{} of {} bytes",
        blocks.len(),
        plain.len()
    );

    let insert = [("query", "INSERT INTO t FORMAT RowBinary"), ("decompress", "1")];
    let reply = server.post(&insert, blocks.clone()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(server.ok(&[], "SELECT count(), sum(a) FROM t").await, "300000\t44999850000\n");

    let last = blocks.len() - 1;
    blocks[last] ^= 1;
    assert_eq!(server.post(&insert, blocks).await.header("x-clickhouse-exception-code"), "40");
}

#[tokio::test]
async fn a_running_query_id_is_refused_until_it_ends() {
    let server = Server::start();
    let slow = server.ok(&[("query_id", "q")], "SELECT sleep(2)");
    let second = async {
        while server.ok(&[], "SELECT count() FROM system.processes").await.trim() != "2" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        server.code(&[("query_id", "q")], "SELECT 1").await
    };
    let (_, code) = tokio::join!(slow, second);
    assert_eq!(code, 216);
    assert_eq!(server.ok(&[("query_id", "q")], "SELECT 1").await, "1\n");
}

#[tokio::test]
async fn calls_beyond_the_limit_wait_and_are_then_refused() {
    let server =
        Server::start_with(Options { connections: 1, queue_seconds: 1, ..Options::default() });
    let slow = server.ok(&[("query_id", "q")], "SELECT sleep(3)");
    let refused = async {
        // Until the slow one is in, this one may get the slot.
        loop {
            let reply = server.post(&[], "SELECT 1").await;
            if reply.status != 200 {
                return reply;
            }
        }
    };
    let (_, refused) = tokio::join!(slow, refused);
    assert_eq!((refused.status, refused.header("x-clickhouse-exception-code")), (503, "202"));
    assert_eq!(server.ok(&[], "SELECT 1").await, "1\n");
}

#[tokio::test]
async fn statements_run_at_the_same_time() {
    let server = Server::start();
    let start = std::time::Instant::now();
    let sleep = || server.ok(&[], "SELECT sleep(1)");
    tokio::join!(sleep(), sleep(), sleep(), sleep());
    let took = start.elapsed();
    assert!(took < std::time::Duration::from_millis(2500), "four sleeps of a second took {took:?}");
}
