//! One partition's inserter: takes batches in Kafka's order and inserts one block at a time, each
//! until it is certainly stored.
//!
//! ```text
//!  message ──► checks (chain, source topic) ──► Block ──► insert ──► stored: the next message
//!                                                           ▲  ├───► failed: again, after a while
//!                                                           └──┘
//!                                                              └───► refused: if the ledger is
//!                                                                    behind it, it was stored
//! ```
//!
//! Where ClickHouse remembers the token of a block that it has lost, it drops that block without a
//! word. So the first block after a start counts as stored only once the ledger says so, and a
//! start from where the ledger is brings a new token.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use clickhouse::Client;
use tally_counts::ledger::BatchOffsets;
use tally_counts::{StoredOffsets, check_chain, next_offset};
use tally_kafka::KeptMessage;
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::quiet_log::QuietLog;
use tally_platform::retry::{Backoff, until_ok};
use tally_platform::store::{self, COUNTS};
use tally_schemas::DeltaBatch;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::block::Block;
use crate::endpoint::{EncodedBlock, Endpoint};
use crate::insert::{BlockIdentity, InsertAnswer, insert};
use crate::insert_failure::{FailureClass, InsertFailure};
use crate::metrics::Metrics;
use crate::partition_error::PartitionError;
use crate::store_health::{PartitionHealth, StoreHealth};

const LEDGER_RETRY: Duration = Duration::from_secs(1);
/// A start that follows several others waits so much longer each time, up to so many times.
const START_PAUSE: Duration = Duration::from_millis(100);
const MAX_START_PAUSES: u32 = 50;
/// Between two log lines about the same trouble.
const REMINDER: Duration = Duration::from_secs(30);

thread_local! {
    /// Filled anew for each batch, in the buffers of the batches before.
    static BLOCK: RefCell<Block> = RefCell::default();
}

/// Why an inserter's task ended.
#[derive(Debug)]
pub(crate) enum InserterEnd {
    /// It was told to, between two inserts.
    Halted,
    /// ClickHouse is not where this task left it: start again at the ledger's position.
    Restart,
    /// No retry mends it.
    Stop(PartitionError),
}

impl<E: Into<PartitionError>> From<E> for InserterEnd {
    fn from(error: E) -> InserterEnd {
        InserterEnd::Stop(error.into())
    }
}

/// What all inserters of a sink have in common.
#[derive(Clone)]
pub(crate) struct InserterContext {
    pub(crate) client: Client,
    pub(crate) batches: DeltaBatches,
    pub(crate) endpoint: Endpoint,
    /// The id of `deltas`.
    pub(crate) topic_id: String,
    pub(crate) metrics: Metrics,
    pub(crate) store_health: StoreHealth,
}

pub(crate) struct Inserter {
    context: InserterContext,
    partition: i32,
    stored: StoredOffsets,
    /// How often this sink has started the partition again at the ledger's position.
    attempt: u32,
    /// The id of the topic that the increments of the batches so far came from.
    source_topic_id: Option<String>,
    /// The ledger has shown that a block of this task is stored.
    is_proven: bool,
    health: PartitionHealth,
    halt: CancellationToken,
}

impl Inserter {
    pub(crate) fn new(
        context: InserterContext,
        partition: i32,
        stored: StoredOffsets,
        attempt: u32,
        halt: CancellationToken,
    ) -> Inserter {
        let health = context.store_health.of(partition);
        Inserter {
            context,
            partition,
            stored,
            attempt,
            source_topic_id: None,
            is_proven: false,
            health,
            halt,
        }
    }

    /// Stores every batch that comes, and tells the next offset of `deltas` after each.
    pub(crate) async fn run(
        mut self,
        mut batches: mpsc::Receiver<KeptMessage>,
        stored: watch::Sender<i64>,
    ) -> InserterEnd {
        let pauses = self.attempt.saturating_sub(1).min(MAX_START_PAUSES);
        if let Err(end) = self.pause(START_PAUSE * pauses).await {
            return end;
        }
        loop {
            let message = tokio::select! {
                biased;
                () = self.halt.cancelled() => return InserterEnd::Halted,
                message = batches.recv() => message,
            };
            let Some(message) = message else { return InserterEnd::Halted };
            if let Err(end) = self.take(message).await {
                return end;
            }
            stored.send_replace(self.stored.deltas);
        }
    }

    async fn take(&mut self, message: KeptMessage) -> Result<(), InserterEnd> {
        let prepared = match self.prepare(&message) {
            Err(_) if self.learns_schema(&message).await? => self.prepare(&message)?,
            prepared => prepared?,
        };
        // Its buffer is used for the next message while ClickHouse works.
        drop(message);
        let next = next_offset(prepared.offsets.offset);
        self.store(&prepared.block, prepared.offsets, next).await?;
        self.context.metrics.stored(prepared.rows, prepared.increments);
        self.stored = StoredOffsets { deltas: next, increments: prepared.source_to };
        Ok(())
    }

    /// Whether the batch may be by a schema that the registry has just told.
    async fn learns_schema(&self, message: &KeptMessage) -> Result<bool, InserterEnd> {
        let payload = message.payload.as_deref().unwrap_or_default();
        let place = (self.partition, message.offset);
        let learned = self.context.batches.learn_patiently(place, payload, &self.halt, || {}).await;
        learned.ok_or(InserterEnd::Halted)
    }

    fn prepare(&mut self, message: &KeptMessage) -> Result<PreparedBatch, PartitionError> {
        let offset = message.offset;
        let payload = message.payload.as_deref().ok_or(PartitionError::Empty { offset })?;
        let unsound = |source| PartitionError::Unsound { offset, source };
        let body = self.context.batches.body(payload).map_err(unsound)?;
        let batch = DeltaBatch::decode(&body).map_err(|error| unsound(error.into()))?;
        let header = &batch.header;
        if header.partition != self.partition {
            return Err(PartitionError::Misplaced { offset, partition: header.partition });
        }
        match &self.source_topic_id {
            None => self.source_topic_id = Some(header.topic_id.to_owned()),
            Some(was) if was == header.topic_id => {}
            Some(was) => {
                let (was, is) = (was.clone(), header.topic_id.to_owned());
                return Err(PartitionError::SourceReplaced { offset, was, is });
            }
        }
        // The first batch of all sets where the chain begins.
        let source = if self.stored.deltas == 0 { header.from } else { self.stored.increments };
        check_chain(source, header.from, header.to)
            .map_err(|source| PartitionError::Chain { offset, source })?;
        // Only when the batch's own row expires hangs on this; without a time it does at once.
        let logged_at_ms = message.timestamp_ms.unwrap_or(0);
        let offsets = BatchOffsets {
            previous: self.stored.deltas,
            offset,
            logged_at_s: u32::try_from(logged_at_ms / 1000).unwrap_or(0),
        };
        let endpoint = &self.context.endpoint;
        let (block, rows) = BLOCK.with_borrow_mut(|block| {
            block.fill(&batch, offsets, endpoint.buffers()).map_err(unsound)?;
            let rows = block.rows();
            let encoded = endpoint.encode(block);
            let encoded = encoded.map_err(|source| PartitionError::Compress { offset, source })?;
            Ok::<_, PartitionError>((encoded, rows))
        })?;
        let (increments, source_to) = (header.increments, header.to);
        Ok(PreparedBatch { block, rows, offsets, increments, source_to })
    }

    /// Sends the block until it is certainly stored.
    async fn store(
        &mut self,
        block: &EncodedBlock,
        offsets: BatchOffsets,
        next: i64,
    ) -> Result<(), InserterEnd> {
        let (partition, offset) = (self.partition, offsets.offset);
        let topic_id = &self.context.topic_id;
        let identity = BlockIdentity { topic_id, partition, offset, attempt: self.attempt };
        let mut row: Option<FailureRow> = None;
        loop {
            let started = Instant::now();
            let answer =
                insert(&self.context.endpoint, COUNTS, &identity, offsets.previous, block).await;
            let seconds = started.elapsed().as_secs_f64();
            match answer {
                Ok(InsertAnswer::Stored) => {
                    self.context.metrics.inserted("stored", seconds);
                    self.health.well();
                    return self.prove(next).await;
                }
                Ok(InsertAnswer::Refused) => {
                    self.context.metrics.inserted(FailureClass::Fence.label(), seconds);
                    self.health.well();
                    return self.refused(offset, next).await;
                }
                Err(failure) => {
                    self.context.metrics.inserted(failure.class.label(), seconds);
                    self.health.troubled(&failure);
                    let row = FailureRow::of(&mut row, failure.class, partition);
                    if row.log.failed(Instant::now()).is_some() {
                        log_failure(partition, offset, &failure);
                    }
                    self.pause(row.backoff.next()).await?;
                }
            }
        }
    }

    /// Asks the ledger after the first block: a token from before may have made ClickHouse drop it
    /// without a word.
    async fn prove(&mut self, next: i64) -> Result<(), InserterEnd> {
        if !self.is_proven && self.position().await? != next {
            return Err(InserterEnd::Restart);
        }
        self.is_proven = true;
        Ok(())
    }

    /// An earlier call may have stored the block after all.
    async fn refused(&mut self, offset: i64, next: i64) -> Result<(), InserterEnd> {
        let position = self.position().await?;
        tracing::info!(
            partition = self.partition,
            offset,
            position,
            "ClickHouse refused a block that does not follow the ledger's position"
        );
        if position != next {
            return Err(InserterEnd::Restart);
        }
        self.is_proven = true;
        Ok(())
    }

    /// Reads the ledger's position; waits for a ClickHouse that is away.
    async fn position(&self) -> Result<i64, InserterEnd> {
        let read = || store::ledger(&self.context.client, self.partition);
        let backoff = Backoff::constant(LEDGER_RETRY);
        let ledger = until_ok(&self.halt, backoff, read, |error, _| {
            let partition = self.partition;
            tracing::warn!(
                %error,
                partition,
                "the ledger in ClickHouse cannot be read; reading it again"
            );
        });
        let ledger = ledger.await.ok_or(InserterEnd::Halted)?.unwrap_or_default();
        Ok(ledger.stored_offsets()?.deltas)
    }

    async fn pause(&self, wait: Duration) -> Result<(), InserterEnd> {
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.halt.cancelled() => Err(InserterEnd::Halted),
        }
    }
}

/// The failures of one class that one block had in a row: each class has waits and log lines of its
/// own.
struct FailureRow {
    class: FailureClass,
    backoff: Backoff,
    log: QuietLog,
}

impl FailureRow {
    /// The row that goes on, or a new one where the last failure was of another class.
    fn of(row: &mut Option<FailureRow>, class: FailureClass, partition: i32) -> &mut FailureRow {
        if row.as_ref().is_some_and(|row| row.class != class) {
            *row = None;
        }
        row.get_or_insert_with(|| FailureRow::new(class, partition))
    }

    fn new(class: FailureClass, partition: i32) -> FailureRow {
        let (first_ms, longest_ms) = match class {
            FailureClass::Fence | FailureClass::Uncertain => (50, 5_000),
            FailureClass::Overloaded => (500, 30_000),
            FailureClass::Unfit => (2_000, 30_000),
        };
        let [first, longest] = [first_ms, longest_ms].map(Duration::from_millis);
        // Partitions wait differently, so that a ClickHouse that recovers is not asked by all of
        // them at once.
        let seed = u64::from(partition.unsigned_abs());
        let backoff = Backoff::doubling(first, longest).with_jitter(seed);
        FailureRow { class, backoff, log: QuietLog::every(REMINDER) }
    }
}

fn log_failure(partition: i32, offset: i64, failure: &InsertFailure) {
    let reason = &failure.reason;
    match failure.class {
        FailureClass::Fence | FailureClass::Uncertain => tracing::warn!(
            partition,
            offset,
            reason,
            "ClickHouse may have stored the block or not; sending it again"
        ),
        FailureClass::Overloaded => tracing::warn!(
            partition,
            offset,
            reason,
            "ClickHouse is overloaded; the block waits and is sent again"
        ),
        FailureClass::Unfit => tracing::error!(
            partition,
            offset,
            reason,
            "ClickHouse takes no blocks until somebody mends it; the block waits and is sent again"
        ),
    }
}

struct PreparedBatch {
    block: EncodedBlock,
    rows: usize,
    offsets: BatchOffsets,
    increments: u64,
    /// Where the batch ends in `increments`.
    source_to: i64,
}
