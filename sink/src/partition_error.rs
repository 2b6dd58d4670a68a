use std::io;

use tally_counts::ChainError;
use tally_counts::ledger::LedgerError;
use tally_platform::delta_batches::Unsound;

/// What is wrong with a partition where no retry mends it: the partition stops, the others go on,
/// and a person must look.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartitionError {
    #[error("the ledger contradicts itself: {0}")]
    Ledger(#[from] LedgerError),
    #[error(
        "the next batch to store is at offset {offset}, but Kafka has offsets {first}..{end} only: \
         what ClickHouse lacks cannot be read again"
    )]
    Gone { offset: i64, first: i64, end: i64 },
    #[error("the partition cannot be read on from Kafka: {reason}")]
    Unreadable { reason: String },
    #[error(
        "the batch at offset {offset} does not follow the one before it in increments: {source}"
    )]
    Chain { offset: i64, source: ChainError },
    #[error(
        "the batch at offset {offset} is of another topic than the one before it, of id {is} and \
         not {was}: increments was deleted and made again"
    )]
    SourceReplaced { offset: i64, was: String, is: String },
    #[error("the batch at offset {offset} is not sound: {source}")]
    Unsound { offset: i64, source: Unsound },
    #[error("the message at offset {offset} is empty")]
    Empty { offset: i64 },
    #[error("the batch at offset {offset} is of partition {partition}")]
    Misplaced { offset: i64, partition: i32 },
    #[error("compress the block of offset {offset}: {source}")]
    Compress { offset: i64, source: io::Error },
}
