//! The fenced insert: one block, which the store takes only if it follows the ledger's position.
//!
//! The fence is checked by the server as it runs the insert; the deduplication token covers the moment between that check
//! and the commit. So the same insert may be sent again whenever its outcome is not known.

use std::time::Duration;

use bytes::Bytes;
use clickhouse::Client;
use clickhouse::error::Error as ClickHouseError;
use tally_counts::ledger::{DELTAS, RESERVED_NAMESPACE};
use tally_service::store::COUNTS;

use crate::block::COLUMNS;

/// How long the store may take a block's bytes without moving, and how long it may then take to store it.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const STORE_TIMEOUT: Duration = Duration::from_secs(120);

/// ClickHouse's codes: `throwIf` threw; the query's id is still running.
const FUNCTION_THROW_IF_VALUE_IS_NON_ZERO: u32 = 395;
const QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING: u32 = 216;

/// What keeps a block whole: one block, one part, at once, and its token always looked at. Servers differ in their
/// defaults of all of these. A batch has each counter once, so there is nothing for the insert to merge.
pub const SETTINGS: [(&str, &str); 15] = [
    ("async_insert", "0"),
    ("wait_end_of_query", "1"),
    ("insert_deduplicate", "1"),
    ("deduplicate_insert_select", "force_enable"),
    ("max_threads", "1"),
    ("max_insert_threads", "1"),
    ("max_block_size", "100000000"),
    ("max_insert_block_size", "100000000"),
    ("min_insert_block_size_rows", "100000000"),
    ("min_insert_block_size_bytes", "10000000000"),
    ("input_format_parallel_parsing", "0"),
    ("input_format_allow_errors_num", "0"),
    ("input_format_null_as_default", "0"),
    ("optimize_on_insert", "0"),
    // The fence reads a few rows of each part, which a second pass over the part only makes dearer.
    ("optimize_move_to_prewhere", "0"),
];

/// What identifies a block: the same on every retry, by any sink.
pub(crate) struct Identity<'a> {
    /// Kafka's id of the deltas topic.
    pub(crate) topic_id: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Counts up when the store forgot a block that its tokens remember.
    pub(crate) attempt: u32,
}

impl Identity<'_> {
    fn token(&self) -> String {
        let Identity { topic_id, partition, offset, attempt } = self;
        format!("tally:{topic_id}:{partition}:{offset}:{attempt}")
    }
}

#[derive(Debug)]
pub(crate) enum Outcome {
    /// In, or in already by the same token.
    Stored,
    /// The ledger's position is not the one that the block follows: nothing was stored by this call.
    Refused,
    /// It may have been stored or not, or will still be.
    Uncertain(String),
}

/// Sends a block that follows `previous`.
pub(crate) async fn insert(client: &Client, identity: &Identity<'_>, previous: i64, block: Bytes) -> Outcome {
    let partition = identity.partition;
    let position = format!(
        "(SELECT (sum(sum), max(high)) FROM {COUNTS} \
         WHERE partition = {partition} AND namespace = '{RESERVED_NAMESPACE}' AND key = '{DELTAS}')"
    );
    let names = COLUMNS.map(|(name, _)| name).join(", ");
    let sql = format!(
        "INSERT INTO {COUNTS} (partition, {names}) SELECT toUInt32({partition}), {names} FROM input('{}') \
         WHERE throwIf({position} != ({previous}, {previous}), 'the ledger is not at {previous}') = 0 \
         FORMAT Native",
        structure()
    );
    let mut insert = client
        .insert_formatted_with(sql)
        .with_timeouts(Some(SEND_TIMEOUT), Some(STORE_TIMEOUT))
        .with_setting("insert_deduplication_token", identity.token())
        .with_setting("query_id", identity.token());
    for (name, value) in SETTINGS {
        insert = insert.with_setting(name, value);
    }
    let sent = async {
        insert.send(block).await?;
        insert.end().await
    };
    match sent.await {
        Ok(()) => Outcome::Stored,
        Err(error) => match exception_code(&error) {
            Some(FUNCTION_THROW_IF_VALUE_IS_NON_ZERO) => Outcome::Refused,
            Some(QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING) => {
                Outcome::Uncertain(String::from("the same insert is still running"))
            }
            _ => Outcome::Uncertain(error.to_string()),
        },
    }
}

/// The block's columns as `input` wants them: quoted, and the namespaces as the table keeps them.
pub fn structure() -> String {
    let column = |(name, kind): (&str, &str)| match name {
        "namespace" => format!("{name} LowCardinality({kind})"),
        _ => format!("{name} {}", kind.replace('\'', "\\'")),
    };
    COLUMNS.map(column).join(", ")
}

/// The code of an exception that the server answered with. The client has it only in the text, whose beginning is part of
/// ClickHouse's protocol: `Code: 395. DB::Exception: …`.
fn exception_code(error: &ClickHouseError) -> Option<u32> {
    let ClickHouseError::BadResponse(text) = error else { return None };
    let digits = text.trim_start().strip_prefix("Code: ")?;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_comes_from_the_beginning_of_an_exception() {
        let code = |text: &str| exception_code(&ClickHouseError::BadResponse(text.into()));
        assert_eq!(code("Code: 395. DB::Exception: the ledger is not at 5: while executing"), Some(395));
        assert_eq!(code("Code: 241. DB::Exception: Memory limit: Code: 395."), Some(241));
        assert_eq!(code("502 Bad Gateway"), None);
        assert_eq!(exception_code(&ClickHouseError::TimedOut), None);
    }
}
