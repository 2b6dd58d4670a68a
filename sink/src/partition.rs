//! One partition's way into the store: batches in the log's order, one insert at a time, each sent until it is certain.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clickhouse::Client;
use rdkafka::message::{Message, OwnedMessage};
use tally_counts::ledger::{LedgerError, Place};
use tally_counts::{Chain, ChainError, next_offset};
use tally_schemas::{DecodeError, DeltaBatch, wire};
use tally_service::store::{self, Ledger};
use tokio::sync::{mpsc, watch};

use crate::block::{self, Encoded};
use crate::insert::{Identity, Outcome, insert};
use crate::metrics::Metrics;

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Something that no retry mends: the partition stops, and a person must look.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the ledger contradicts itself: {0}")]
    Ledger(#[from] LedgerError),
    #[error("the batch at offset {offset} does not follow the one before it in increments: {source}")]
    Chain { offset: i64, source: ChainError },
    #[error("the batch at offset {offset} is not in the wire format: {source}")]
    Framing { offset: i64, source: wire::Error },
    #[error("the batch at offset {offset} does not decode: {source}")]
    Decode { offset: i64, source: DecodeError },
    #[error("the message at offset {offset} is empty")]
    Empty { offset: i64 },
    #[error("the batch at offset {offset} is of partition {partition}")]
    Misplaced { offset: i64, partition: i32 },
}

/// Why a partition's task ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The consumer let the partition go.
    Released,
    /// The store is not where this task left it: start again at the ledger's position.
    Rewind,
    Broken(Broken),
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
    pub(crate) fn of(ledger: Option<&Ledger>) -> Result<Stored, LedgerError> {
        match ledger {
            None => Ok(Stored { deltas: 0, increments: 0 }),
            Some(ledger) => {
                Ok(Stored { deltas: ledger.deltas.position()?, increments: ledger.increments.position()? })
            }
        }
    }
}

pub(crate) struct Partition {
    pub(crate) client: Client,
    pub(crate) topic_id: String,
    pub(crate) partition: i32,
    pub(crate) stored: Stored,
    /// How often the store was found to have forgotten a block.
    pub(crate) attempt: u32,
    pub(crate) metrics: Metrics,
}

impl Partition {
    /// Stores every batch that comes, and tells the position after each.
    pub(crate) async fn run(
        mut self,
        mut batches: mpsc::Receiver<OwnedMessage>,
        position: watch::Sender<i64>,
    ) -> End {
        while let Some(message) = batches.recv().await {
            let (block, place) = match self.prepare(&message) {
                Ok(prepared) => prepared,
                Err(broken) => return End::Broken(broken),
            };
            match self.store(&block, place).await {
                Ok(true) => {}
                Ok(false) => return End::Rewind,
                Err(broken) => return End::Broken(broken),
            }
            self.metrics.stored(block.rows, block.increments);
            self.stored.deltas = next_offset(place.offset);
            self.stored.increments = block.source_to;
            position.send_replace(self.stored.deltas);
        }
        End::Released
    }

    fn prepare(&self, message: &OwnedMessage) -> Result<(Block, Place), Broken> {
        let offset = message.offset();
        let payload = message.payload().ok_or(Broken::Empty { offset })?;
        let (_, body) = wire::split(payload).map_err(|source| Broken::Framing { offset, source })?;
        let decode = |source| Broken::Decode { offset, source };
        let batch = DeltaBatch::decode(body).map_err(decode)?;
        let header = &batch.header;
        if header.partition != self.partition {
            return Err(Broken::Misplaced { offset, partition: header.partition });
        }
        // The first batch of all sets where the chain begins.
        let source = if self.stored.deltas == 0 { header.from } else { self.stored.increments };
        Chain::starting_at(source)
            .link(header.from, header.to)
            .map_err(|source| Broken::Chain { offset, source })?;
        // Only when the batch's own row expires hangs on this; without a time it does at once.
        let logged_at_ms = message.timestamp().to_millis().unwrap_or(0);
        let place = Place {
            previous: self.stored.deltas,
            offset,
            logged_at_s: u32::try_from(logged_at_ms / 1000).unwrap_or(0),
        };
        let Encoded { bytes, rows } = block::encode(&batch, place).map_err(decode)?;
        let (increments, source_to) = (header.increments, header.to);
        Ok((Block { bytes: Bytes::from(bytes), rows, increments, source_to }, place))
    }

    /// Sends the block until it is known to be in; `false` when the store is somewhere else altogether.
    async fn store(&self, block: &Block, place: Place) -> Result<bool, Broken> {
        let identity = Identity {
            topic_id: &self.topic_id,
            partition: self.partition,
            offset: place.offset,
            attempt: self.attempt,
        };
        let mut retry = FIRST_RETRY;
        loop {
            let started = Instant::now();
            let outcome = insert(&self.client, &identity, place.previous, block.bytes.clone()).await;
            let seconds = started.elapsed().as_secs_f64();
            match outcome {
                Outcome::Stored => {
                    self.metrics.inserted("stored", seconds);
                    return Ok(true);
                }
                Outcome::Refused => {
                    self.metrics.inserted("refused", seconds);
                    let position = self.position().await?;
                    tracing::info!(
                        partition = self.partition,
                        offset = place.offset,
                        position,
                        "the store refused a block that does not follow its position"
                    );
                    return Ok(position == next_offset(place.offset));
                }
                Outcome::Uncertain(reason) => {
                    self.metrics.inserted("uncertain", seconds);
                    tracing::warn!(
                        partition = self.partition,
                        offset = place.offset,
                        reason,
                        "send the block again"
                    );
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }

    /// The ledger's position; waits for a store that is away.
    async fn position(&self) -> Result<i64, Broken> {
        loop {
            match store::ledgers(&self.client, false).await {
                Ok(ledgers) => return Ok(Stored::of(ledgers.get(&self.partition))?.deltas),
                Err(error) => {
                    tracing::warn!(%error, partition = self.partition, "read the ledger again");
                    tokio::time::sleep(LAST_RETRY).await;
                }
            }
        }
    }
}

struct Block {
    bytes: Bytes,
    rows: usize,
    increments: u64,
    /// Where the batch ends in `increments`.
    source_to: i64,
}
