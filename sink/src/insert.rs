//! The fenced insert: one block, which ClickHouse takes only if it follows the ledger's position.
//!
//! The fence is checked by the server as it runs the insert; the deduplication token covers the
//! moment between that check and the commit. So the same insert may be sent again whenever its
//! outcome is not known.
//!
//! The query's id is the block's own, whatever the token is: a server that runs one does not run
//! another of the same id beside it, so two tokens of one block never pass the fence together.

use std::fmt;

use tally_counts::ledger::{DELTAS, RESERVED_NAMESPACE};

use crate::block::COLUMNS;
use crate::endpoint::{EncodedBlock, Endpoint};
use crate::insert_failure::{FailureClass, InsertFailure};

/// What keeps a block whole: one block, one part, at once, and its token always looked at. Servers
/// differ in their defaults of all of these. A batch has each counter once, or a few times where 64
/// bits do not hold its sum, so there is nothing for the insert to merge.
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
pub(crate) struct BlockIdentity<'a> {
    pub(crate) topic_id: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Counts up when ClickHouse has lost a block whose token it remembers.
    pub(crate) attempt: u32,
}

impl BlockIdentity<'_> {
    fn query_id(&self) -> String {
        let BlockIdentity { topic_id, partition, offset, .. } = self;
        format!("tally:{topic_id}:{partition}:{offset}")
    }

    fn token(&self) -> String {
        format!("{}:{}", self.query_id(), self.attempt)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertAnswer {
    /// The block is stored, by this call or by an earlier one with the same token.
    Stored,
    /// The ledger's position is not the one that the block follows: this call stored nothing.
    Refused,
}

impl fmt::Display for InsertAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InsertAnswer::Stored => "stored",
            InsertAnswer::Refused => "refused",
        })
    }
}

/// Sends a block that follows `previous` in `table`. After an error the block may be stored or not,
/// or may still be stored later.
pub(crate) async fn insert(
    endpoint: &Endpoint,
    table: &str,
    identity: &BlockIdentity<'_>,
    previous: i64,
    block: &EncodedBlock,
) -> Result<InsertAnswer, InsertFailure> {
    let (query_id, token) = (identity.query_id(), identity.token());
    let own = [("query_id", query_id.as_str()), ("insert_deduplication_token", token.as_str())];
    let settings: Vec<(&str, &str)> = SETTINGS.into_iter().chain(own).collect();
    match endpoint.insert(&statement(table, identity.partition, previous), &settings, block).await {
        Ok(()) => Ok(InsertAnswer::Stored),
        Err(InsertFailure { class: FailureClass::Fence, .. }) => Ok(InsertAnswer::Refused),
        Err(failure) => Err(failure),
    }
}

fn statement(table: &str, partition: i32, previous: i64) -> String {
    let position = format!(
        "(SELECT (sum(sum), max(high)) FROM {table} \
         WHERE partition = {partition} AND namespace = '{RESERVED_NAMESPACE}' AND key = '{DELTAS}')"
    );
    format!(
        "INSERT INTO {table} ({TABLE_COLUMNS}) \
         SELECT {} FROM input('{}') \
         WHERE throwIf({position} != ({previous}, {previous}), 'the ledger is not at {previous}') \
         = 0 FORMAT Native",
        table_values(partition),
        structure()
    )
}

/// The table's columns that a block fills.
pub const TABLE_COLUMNS: &str =
    "partition, namespace, key, bucket, sum_low, sum_high, events, high";

/// What a block's columns come to in those of the table: a sum is stored as its lowest 32 bits and
/// the rest, so that summing many of either never wraps.
pub fn table_values(partition: i32) -> String {
    format!(
        "toUInt32({partition}), namespace, key, bucket, \
         toUInt64(bitAnd(sum, 4294967295)), bitShiftRight(sum, 32), events, high"
    )
}

/// The block's columns as ClickHouse's `input` takes them, inside of a quoted string.
pub fn structure() -> String {
    COLUMNS.map(|(name, kind)| format!("{name} {}", kind.replace('\'', "\\'"))).join(", ")
}
