//! ClickHouse's HTTP interface over the embedded ClickHouse engine.
