//! The proof at the start that this ClickHouse keeps what exactly-once rests on. It is asked with
//! the very insert of every block, on a scratch table. What has several servers is refused before
//! that: one of them alone may keep all promises.
//!
//! ```text
//!  one server, one table counts, of the engine that init makes                     `check_support`
//!  CREATE … AS counts ─► a large block        ─► one part                        OnePart
//!                        another, same fence  ─► refused, nothing in             FenceRefuses
//!                        the first one's token, a fence that holds ─► nothing in TokenDrops
//!                        a new token, a fence that holds           ─► in         FollowerGoesIn
//!  DROP
//! ```
//!
//! Servers and versions differ: a setting that a profile overrides, a proxy that caches or spreads
//! calls over replicas, a version that ignores tokens on `INSERT … SELECT`. What none of them may
//! do is to pass unnoticed.

use std::fmt;
use std::time::Duration;

use clickhouse::error::Error as StoreError;
use clickhouse::{Client, Row};
use serde::Deserialize;
use tally_counts::Fingerprint;
use tally_counts::ledger::BatchOffsets;
use tally_platform::config;
use tally_platform::health::Condition;
use tally_platform::store::{COUNTS, SupportError, check_support};
use tally_schemas::{Delta, DeltaBatch, DeltaBatchHeader, delta_batch};

use crate::block::Block;
use crate::consumer_thread::ConsumerThread;
use crate::endpoint::{EncodedBlock, Endpoint};
use crate::insert::{BlockIdentity, InsertAnswer, insert};
use crate::insert_failure::InsertFailure;

/// More rows than any server puts into one block by default, and than a batch has.
const LARGE_ROWS: usize = 200_000;
const SMALL_ROWS: usize = 3;
/// In the year 2096: a ledger row that expires would leave while the rows are counted.
const LOGGED_AT_S: u32 = 4_000_000_000;
const PREFIX: &str = "tally_proof_";
/// What a sink that died left behind is dropped after this.
const LEFTOVER: Duration = Duration::from_secs(3600);
/// For one call, the inserts aside.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    OnePart,
    FenceRefuses,
    TokenDrops,
    FollowerGoesIn,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Promise::OnePart => "one block makes one part",
            Promise::FenceRefuses => {
                "a block that does not follow the ledger's position is refused"
            }
            Promise::TokenDrops => "a block whose token was there before is dropped",
            Promise::FollowerGoesIn => "a block that follows the ledger's position goes in",
        })
    }
}

/// Why nothing is proven.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{promise}, but {found} (ClickHouse {version})")]
    Broken { version: String, promise: Promise, found: String },
    #[error(transparent)]
    Support(#[from] SupportError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Insert(#[from] InsertFailure),
}

/// Waits for a ClickHouse that is away; `false` once the sink is to stop. An error if ClickHouse
/// breaks a promise.
pub(crate) fn wait_until_proven(
    store: &config::Store,
    client: &Client,
    endpoint: &Endpoint,
    thread: &ConsumerThread<'_>,
    proven: &Condition,
) -> Result<bool, crate::Error> {
    let prove = async || match prove(store, client, endpoint).await {
        Ok(()) => Ok(Ok(())),
        Err(Error::Support(SupportError::Unsupported(unsupported))) => Ok(Err(unsupported.into())),
        Err(Error::Broken { version, promise, found }) => {
            Ok(Err(crate::Error::Promise { version, promise, found }))
        }
        Err(error) => Err(error),
    };
    let answer = thread.until_ok(RETRY, prove, |error| {
        tracing::warn!(%error, "ClickHouse cannot be asked for its promises; asking again");
        proven.set(false, error.to_string());
    });
    let Some(answer) = answer else { return Ok(false) };
    answer.map(|()| {
        proven.set(true, "");
        true
    })
}

/// Asks once. Whatever comes of it, the scratch table is gone afterwards, or some later proof drops
/// it.
async fn prove(store: &config::Store, client: &Client, endpoint: &Endpoint) -> Result<(), Error> {
    check_support(store).await?;
    sweep(client).await?;
    let (version, id): (String, String) =
        within(client.query("SELECT version(), lower(hex(generateUUIDv4()))").fetch_one()).await?;
    let scratch = Scratch { client, endpoint, table: format!("{PREFIX}{id}"), id };
    execute(client, &format!("CREATE TABLE {} AS {COUNTS}", scratch.table)).await?;
    let proven = scratch.prove(&version).await;
    execute(client, &format!("DROP TABLE IF EXISTS {}", scratch.table)).await?;
    proven
}

async fn sweep(client: &Client) -> Result<(), StoreError> {
    let left = format!(
        "SELECT name FROM system.tables \
         WHERE database = currentDatabase() AND startsWith(name, '{PREFIX}') \
         AND metadata_modification_time < now() - {}",
        LEFTOVER.as_secs()
    );
    let tables: Vec<String> = within(client.query(&left).fetch_all()).await?;
    for table in tables {
        tracing::info!(
            table,
            "dropping the scratch table that an earlier proof left in ClickHouse"
        );
        execute(client, &format!("DROP TABLE IF EXISTS {table}")).await?;
    }
    Ok(())
}

struct Scratch<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    table: String,
    /// Makes tokens that no other proof has.
    id: String,
}

impl Scratch<'_> {
    async fn prove(&self, version: &str) -> Result<(), Error> {
        let broken = |promise, found| Error::Broken { version: version.to_owned(), promise, found };
        let large = sample(self.endpoint, LARGE_ROWS, 0);
        let first = self.insert(0, 0, &large).await?;
        if first != InsertAnswer::Stored {
            let found = format!("the server says {first} of the first block of all");
            return Err(broken(Promise::FollowerGoesIn, found));
        }
        let parts = self.parts().await?;
        if !matches!(&parts[..], [part] if part.is_whole() && part.rows == large.rows) {
            let found = format!("a block of {} rows made {}", large.rows, told(&parts));
            return Err(broken(Promise::OnePart, found));
        }

        let small = sample(self.endpoint, SMALL_ROWS, 1);
        let refused = self.insert(1, 0, &small).await?;
        let stored = self.rows().await?;
        if refused != InsertAnswer::Refused || stored != large.rows {
            let found =
                format!("the server says {refused}, and has {stored} rows of {}", large.rows);
            return Err(broken(Promise::FenceRefuses, found));
        }

        let again = self.insert(0, 1, &large).await?;
        let stored = self.rows().await?;
        if again != InsertAnswer::Stored || stored != large.rows {
            let found = format!("the server says {again}, and has {stored} rows of {}", large.rows);
            return Err(broken(Promise::TokenDrops, found));
        }

        let follower = self.insert(1, 1, &small).await?;
        let (stored, due) = (self.rows().await?, large.rows + small.rows);
        if follower != InsertAnswer::Stored || stored != due {
            let found = format!("the server says {follower}, and has {stored} rows of {due}");
            return Err(broken(Promise::FollowerGoesIn, found));
        }
        Ok(())
    }

    async fn insert(
        &self,
        offset: i64,
        previous: i64,
        block: &SampleBlock,
    ) -> Result<InsertAnswer, InsertFailure> {
        let identity = BlockIdentity { topic_id: &self.id, partition: 0, offset, attempt: 0 };
        insert(self.endpoint, &self.table, &identity, previous, &block.encoded).await
    }

    async fn parts(&self) -> Result<Vec<Part>, StoreError> {
        let sql = format!(
            "SELECT _part AS name, count() AS rows FROM {} GROUP BY name ORDER BY name",
            self.table
        );
        within(self.client.query(&sql).fetch_all()).await
    }

    async fn rows(&self) -> Result<u64, StoreError> {
        Ok(self.parts().await?.iter().map(|part| part.rows).sum())
    }
}

#[derive(Row, Deserialize)]
struct Part {
    /// `<partition>_<first block>_<last block>_<how often merged>`.
    name: String,
    rows: u64,
}

impl Part {
    /// Not merged from several, which would hide that there were several.
    fn is_whole(&self) -> bool {
        let mut fields = self.name.split('_').skip(1);
        fields.next().is_some_and(|first| fields.next() == Some(first))
    }
}

fn told(parts: &[Part]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = parts
        .iter()
        .take(SHOWN)
        .map(|part| format!("{} of {} rows", part.name, part.rows))
        .collect();
    let more = if parts.len() > SHOWN { ", …" } else { "" };
    format!("{} parts: {}{more}", parts.len(), shown.join(", "))
}

struct SampleBlock {
    encoded: EncodedBlock,
    rows: u64,
}

/// A block of some deltas at an offset, as the sink makes them of batches.
fn sample(endpoint: &Endpoint, deltas: usize, offset: i64) -> SampleBlock {
    let keys: Vec<String> = (0..deltas).map(|n| format!("key-{offset}-{n}")).collect();
    let deltas =
        keys.iter().map(|key| Delta { namespace: "proof", key, bucket_s: 60, sum: 1, events: 1 });
    let row = |delta: Delta<'_>| {
        Fingerprint::of_row(delta.namespace, delta.key, delta.bucket_s, delta.sum)
    };
    let fingerprint = deltas.clone().map(row).fold(Fingerprint::ZERO, |sum, row| sum + row);
    let header = DeltaBatchHeader {
        topic_id: "",
        partition: 0,
        from: offset,
        to: offset + 1,
        counted: 1,
        duplicate: 0,
        rejected: 0,
        increments: keys.len() as u64,
        fingerprint: fingerprint.to_bits(),
        correction: false,
    };
    let mut body = Vec::new();
    delta_batch::encode(&mut body, &header, deltas);
    let batch = DeltaBatch::decode(&body).expect("what was just encoded decodes");
    let offsets = BatchOffsets { previous: offset, offset, logged_at_s: LOGGED_AT_S };
    let mut block = Block::of(&batch, offsets).expect("what was just encoded decodes");
    let rows = block.rows() as u64;
    SampleBlock {
        encoded: endpoint.encode(&mut block).expect("memory takes what is written"),
        rows,
    }
}

async fn execute(client: &Client, sql: &str) -> Result<(), StoreError> {
    within(client.query_raw(sql).execute()).await
}

async fn within<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or(Err(StoreError::TimedOut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_whole_if_it_was_not_merged_from_several() {
        let is_whole = |name: &str| Part { name: name.to_owned(), rows: 1 }.is_whole();
        assert!(is_whole("0_1_1_0"));
        assert!(!is_whole("0_1_4_1"));
        assert!(is_whole("0_1_1_1"));
        assert!(is_whole("0_7_7_0_9"));
        assert!(!is_whole("0_1_2_1_9"));
    }
}
