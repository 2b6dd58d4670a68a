//! The blocks that a sink would insert, but that their rows are in the order of their batch.

use std::collections::BTreeMap;

use bytes::Bytes;
use tally_counts::ledger::BatchOffsets;
use tally_counts::next_offset;

use super::log::{Batch, Log};

pub(crate) struct Block {
    pub(crate) partition: i32,
    pub(crate) rows: u64,
    pub(crate) bytes: Bytes,
}

/// All batches on `deltas`, in the order of their partitions.
pub(crate) fn read(log: &Log) -> anyhow::Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut ends = BTreeMap::new();
    log.batches(|batch| {
        let previous = ends.entry(batch.content.header.partition).or_insert(0);
        blocks.push(block(&batch, *previous)?);
        *previous = next_offset(batch.offset);
        Ok(())
    })?;
    Ok(blocks)
}

fn block(batch: &Batch<'_>, previous: i64) -> anyhow::Result<Block> {
    let logged_at_s = u32::try_from(batch.logged_at_ms / 1000)?;
    let place = BatchOffsets { previous, offset: batch.offset, logged_at_s };
    let encoded = tally_sink::block::Block::unsorted(&batch.content, place)?;
    let mut bytes = Vec::new();
    encoded.write_to(&mut bytes)?;
    Ok(Block {
        partition: batch.content.header.partition,
        rows: encoded.rows() as u64,
        bytes: bytes.into(),
    })
}
