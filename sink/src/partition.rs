//! One partition's way into the store: batches in the log's order, one insert at a time, each sent
//! until it is certain.
//!
//! ```text
//!  message ──► checks (chain, source topic) ──► Block ──► insert ──► stored: the next message
//!                                                 ▲          ├─────► failed: again, after a while
//!                                                 └──────────┘─────► refused: is the ledger behind it? then it was stored
//! ```
//!
//! A token that the store remembers of a block that it has lost makes it drop that block without a
//! word. So the first block after a start counts as stored only once the ledger says so, and a
//! start from where the ledger is brings a new token.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use clickhouse::Client;
use tally_counts::ledger::BatchOffsets;
use tally_counts::{check_chain, next_offset};
use tally_kafka::KeptMessage;
use tally_platform::store::{self, COUNTS, Ledger};
use tally_schemas::{DeltaBatch, wire};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::answer::{Class, Failure};
use crate::backoff::Backoff;
use crate::block::Block;
use crate::broken::Broken;
use crate::endpoint::{Endpoint, Packed};
use crate::insert::{Identity, Outcome, insert};
use crate::metrics::Metrics;
use crate::standing::PartitionStanding;

const LEDGER_RETRY: Duration = Duration::from_secs(1);
/// A start that follows several others waits so much longer each time, up to so many times.
const START_PAUSE: Duration = Duration::from_millis(100);
const MAX_START_PAUSES: u32 = 50;
/// Between two log lines about the same trouble.
const REMINDER: Duration = Duration::from_secs(30);

thread_local! {
    /// Filled anew for each batch, in the memory of those before.
    static BLOCK: RefCell<Block> = RefCell::default();
}

/// Why a partition's task ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It was told to, between two inserts.
    Halted,
    /// The store is not where this task left it: start again at the ledger's position.
    Rewind,
    Broken(Broken),
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        End::Broken(broken)
    }
}

/// Where the store is with a partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// The next offset of `deltas`.
    pub(crate) deltas: i64,
    /// The next offset of `increments`.
    pub(crate) increments: i64,
}

impl Stored {
    pub(crate) fn of(ledger: Option<&Ledger>) -> Result<Stored, Broken> {
        match ledger {
            None => Ok(Stored { deltas: 0, increments: 0 }),
            Some(ledger) => Ok(Stored {
                deltas: ledger.deltas.position()?,
                increments: ledger.increments.position()?,
            }),
        }
    }
}

pub(crate) struct Partition {
    pub(crate) client: Client,
    pub(crate) endpoint: Endpoint,
    pub(crate) topic_id: String,
    pub(crate) partition: i32,
    pub(crate) stored: Stored,
    /// How often this sink has started it again at the ledger's position.
    pub(crate) attempt: u32,
    /// The id of the topic that the increments of the batches so far came from.
    pub(crate) source_id: Option<String>,
    /// The ledger has shown that a block of this task is in.
    pub(crate) is_proven: bool,
    pub(crate) metrics: Metrics,
    pub(crate) standing: PartitionStanding,
    pub(crate) halt: CancellationToken,
}

impl Partition {
    /// Stores every batch that comes, and tells the position after each.
    pub(crate) async fn run(
        mut self,
        mut batches: mpsc::Receiver<KeptMessage>,
        position: watch::Sender<i64>,
    ) -> End {
        let pauses = self.attempt.saturating_sub(1).min(MAX_START_PAUSES);
        if let Err(end) = self.pause(START_PAUSE * pauses).await {
            return end;
        }
        loop {
            let message = tokio::select! {
                biased;
                () = self.halt.cancelled() => return End::Halted,
                message = batches.recv() => message,
            };
            let Some(message) = message else { return End::Halted };
            if let Err(end) = self.take(message).await {
                return end;
            }
            position.send_replace(self.stored.deltas);
        }
    }

    async fn take(&mut self, message: KeptMessage) -> Result<(), End> {
        let (prepared, place) = self.prepare(&message)?;
        // Its memory is the next one's while the store works.
        drop(message);
        let next = next_offset(place.offset);
        self.store(&prepared.packed, place, next).await?;
        self.metrics.stored(prepared.rows, prepared.increments);
        self.stored = Stored { deltas: next, increments: prepared.source_to };
        Ok(())
    }

    fn prepare(&mut self, message: &KeptMessage) -> Result<(Prepared, BatchOffsets), Broken> {
        let offset = message.offset;
        let payload = message.payload.as_deref().ok_or(Broken::Empty { offset })?;
        let (_, body) =
            wire::split(payload).map_err(|source| Broken::Framing { offset, source })?;
        let decode = |source| Broken::Decode { offset, source };
        let batch = DeltaBatch::decode(body).map_err(decode)?;
        let header = &batch.header;
        if header.partition != self.partition {
            return Err(Broken::Misplaced { offset, partition: header.partition });
        }
        match &self.source_id {
            None => self.source_id = Some(header.topic_id.to_owned()),
            Some(was) if was == header.topic_id => {}
            Some(was) => {
                let (was, is) = (was.clone(), header.topic_id.to_owned());
                return Err(Broken::SourceReplaced { offset, was, is });
            }
        }
        // The first batch of all sets where the chain begins.
        let source = if self.stored.deltas == 0 { header.from } else { self.stored.increments };
        check_chain(source, header.from, header.to)
            .map_err(|source| Broken::Chain { offset, source })?;
        // Only when the batch's own row expires hangs on this; without a time it does at once.
        let logged_at_ms = message.timestamp_ms.unwrap_or(0);
        let place = BatchOffsets {
            previous: self.stored.deltas,
            offset,
            logged_at_s: u32::try_from(logged_at_ms / 1000).unwrap_or(0),
        };
        let (packed, rows) = BLOCK.with_borrow_mut(|block| {
            block.fill(&batch, place, self.endpoint.buffers()).map_err(decode)?;
            let rows = block.rows();
            let packed =
                self.endpoint.pack(block).map_err(|source| Broken::Pack { offset, source })?;
            Ok::<_, Broken>((packed, rows))
        })?;
        Ok((Prepared { packed, rows, increments: header.increments, source_to: header.to }, place))
    }

    /// Sends the block until it is known to be in.
    async fn store(&mut self, block: &Packed, place: BatchOffsets, next: i64) -> Result<(), End> {
        let topic_id = self.topic_id.clone();
        let (partition, attempt) = (self.partition, self.attempt);
        let identity = Identity { topic_id: &topic_id, partition, offset: place.offset, attempt };
        let mut backoff = Backoff::new(partition);
        let mut said: Option<Instant> = None;
        loop {
            let started = Instant::now();
            let outcome = insert(&self.endpoint, COUNTS, &identity, place.previous, block).await;
            let seconds = started.elapsed().as_secs_f64();
            match outcome {
                Outcome::Stored => {
                    self.metrics.inserted("stored", seconds);
                    self.standing.well();
                    return self.prove(next).await;
                }
                Outcome::Refused => {
                    self.metrics.inserted(Class::Fence.label(), seconds);
                    self.standing.well();
                    return self.refused(place.offset, next).await;
                }
                Outcome::Failed(failure) => {
                    self.metrics.inserted(failure.class.label(), seconds);
                    self.standing.troubled(&failure);
                    let (wait, is_first) = backoff.next(failure.class);
                    if is_first || said.is_none_or(|said| said.elapsed() >= REMINDER) {
                        said = Some(Instant::now());
                        say(partition, place.offset, &failure);
                    }
                    self.pause(wait).await?;
                }
            }
        }
    }

    /// A token from before may have made the store drop the block without a word.
    async fn prove(&mut self, next: i64) -> Result<(), End> {
        if !self.is_proven && self.position().await? != next {
            return Err(End::Rewind);
        }
        self.is_proven = true;
        Ok(())
    }

    /// An earlier call may have stored the block after all.
    async fn refused(&mut self, offset: i64, next: i64) -> Result<(), End> {
        let position = self.position().await?;
        tracing::info!(
            partition = self.partition,
            offset,
            position,
            "the store refused a block that does not follow its position"
        );
        if position != next {
            return Err(End::Rewind);
        }
        self.is_proven = true;
        Ok(())
    }

    /// The ledger's position; waits for a store that is away.
    async fn position(&self) -> Result<i64, End> {
        loop {
            match store::ledger(&self.client, self.partition).await {
                Ok(ledger) => return Ok(Stored::of(ledger.as_ref())?.deltas),
                Err(error) => {
                    tracing::warn!(%error, partition = self.partition, "read the ledger again");
                    self.pause(LEDGER_RETRY).await?;
                }
            }
        }
    }

    async fn pause(&self, wait: Duration) -> Result<(), End> {
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.halt.cancelled() => Err(End::Halted),
        }
    }
}

fn say(partition: i32, offset: i64, failure: &Failure) {
    let reason = &failure.reason;
    match failure.class {
        Class::Fence | Class::Uncertain => {
            tracing::warn!(partition, offset, reason, "send the block again");
        }
        Class::Overloaded => {
            tracing::warn!(partition, offset, reason, "the store is overloaded: the block waits");
        }
        Class::Unfit => tracing::error!(
            partition,
            offset,
            reason,
            "the store takes no blocks until it is mended: the block waits"
        ),
    }
}

struct Prepared {
    packed: Packed,
    rows: usize,
    increments: u64,
    /// Where the batch ends in `increments`.
    source_to: i64,
}
