//! The blocks that a sink would insert, made without it: deltas and ledger rows, column by column in ClickHouse's Native
//! format.

use std::collections::BTreeMap;

use bytes::Bytes;
use tally_counts::ledger::{self, Place, RESERVED_NAMESPACE};
use tally_counts::next_offset;

use super::log::{Batch, Log};

/// Names and types.
pub(crate) const COLUMNS: [(&str, &str); 7] = [
    ("partition", "UInt32"),
    ("namespace", "String"),
    ("key", "String"),
    ("bucket", "DateTime('UTC')"),
    ("sum", "Int64"),
    ("events", "Int64"),
    ("high", "Int64"),
];

/// A batch as a block.
pub(crate) struct Block {
    pub(crate) partition: i32,
    /// The offset in `deltas` after it.
    pub(crate) next: i64,
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
    let header = &batch.content.header;
    let mut columns = Columns { partition: header.partition, rows: 0, values: Default::default() };
    for delta in batch.content.deltas.clone() {
        let delta = delta?;
        columns.row(delta.namespace, delta.key, delta.bucket_s, [delta.sum, delta.events, 0]);
    }
    let logged_at_s = u32::try_from(batch.logged_at_ms / 1000)?;
    for row in ledger::rows(Place { previous, offset: batch.offset, logged_at_s }, header) {
        columns.row(RESERVED_NAMESPACE, &row.key, row.bucket, [row.sum, 1, row.high]);
    }
    let (partition, next, rows) = (header.partition, next_offset(batch.offset), columns.rows);
    Ok(Block { partition, next, rows, bytes: columns.finish().into() })
}

struct Columns {
    partition: i32,
    rows: u64,
    values: [Vec<u8>; COLUMNS.len()],
}

impl Columns {
    fn row(&mut self, namespace: &str, key: &str, bucket_s: u32, numbers: [i64; 3]) {
        let [partitions, namespaces, keys, buckets, others @ ..] = &mut self.values;
        partitions.extend_from_slice(&self.partition.to_le_bytes());
        text(namespaces, namespace);
        text(keys, key);
        buckets.extend_from_slice(&bucket_s.to_le_bytes());
        for (column, number) in others.iter_mut().zip(numbers) {
            column.extend_from_slice(&number.to_le_bytes());
        }
        self.rows += 1;
    }

    /// Native: how many columns and rows, then each column's name, type and values.
    fn finish(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        length(&mut bytes, COLUMNS.len() as u64);
        length(&mut bytes, self.rows);
        for ((name, kind), values) in COLUMNS.iter().zip(&self.values) {
            text(&mut bytes, name);
            text(&mut bytes, kind);
            bytes.extend_from_slice(values);
        }
        bytes
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    length(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// In LEB128.
fn length(out: &mut Vec<u8>, mut length: u64) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}
