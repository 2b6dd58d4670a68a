"""Talks to the server with clickhouse-connect: `connect.py <url>`.

Exits with 0 if everything is as it should be.
"""

import sys
from urllib.parse import urlparse

import clickhouse_connect
from clickhouse_connect.driver.exceptions import DatabaseError


def main() -> None:
    url = urlparse(sys.argv[1])
    client = clickhouse_connect.get_client(host=url.hostname, port=url.port)

    client.command(
        "CREATE TABLE flights (id UInt64, route String, delay Int32)"
        " ENGINE = MergeTree ORDER BY id"
    )
    rows = [[id, f"it's \\ {id % 7}", id - 50] for id in range(10_000)]
    for compression in (None, "lz4"):
        client.insert(
            "flights",
            rows,
            column_names=["id", "route", "delay"],
            settings={"async_insert": 0, "insert_deduplication_token": f"{compression}"},
        )
        writer = clickhouse_connect.get_client(
            host=url.hostname, port=url.port, compress=compression or False
        )
        writer.insert("flights", rows[:10], column_names=["id", "route", "delay"])
        writer.close()

    expect(client.command("SELECT count() FROM flights"), 20_020)
    result = client.query(
        "SELECT id, route, delay FROM flights"
        " WHERE route = {route:String} AND id < {top:UInt64} ORDER BY id LIMIT 1 BY id",
        parameters={"route": "it's \\ 3", "top": 20},
        settings={"max_threads": 1},
    )
    route = "it's \\ 3"
    expect(result.result_rows, [(3, route, -47), (10, route, -40), (17, route, -33)])
    expect(result.column_names, ("id", "route", "delay"))
    expect(client.raw_query("SELECT 1 AS x", fmt="JSONEachRow"), b'{"x":1}\n')

    block_size = "SELECT getSetting('max_block_size')"
    expect(client.command(block_size, settings={"max_block_size": 77}), 77)
    if client.command(block_size) == 77:
        raise SystemExit("a setting outlived its call")

    try:
        client.query("SELECT * FROM nope")
    except DatabaseError as error:
        if "code: 60" not in str(error).lower() or "UNKNOWN_TABLE" not in str(error):
            raise SystemExit(f"not the exception that it should be: {error}") from error
    else:
        raise SystemExit("a missing table raised nothing")
    client.close()


def expect(got: object, wanted: object) -> None:
    if got != wanted:
        raise SystemExit(f"got {got!r} where {wanted!r} was expected")


main()
