//! A batch as the block that goes into the store: its deltas and its ledger rows, in ClickHouse's RowBinary.
//!
//! The block is a function of the log alone, so any sink at any time makes the same one.

use tally_counts::ledger::{self, Place, RESERVED_NAMESPACE};
use tally_schemas::{DecodeError, DeltaBatch};

/// The block's columns, as ClickHouse names and types them.
pub(crate) const STRUCTURE: &str = "partition UInt32, namespace LowCardinality(String), key String, bucket DateTime(''UTC''), \
     sum Int64, events Int64, high Int64";
/// The columns' names alone.
pub(crate) const COLUMNS: &str = "partition, namespace, key, bucket, sum, events, high";

/// Numbers of a row, and the lengths of its two names.
const ROW_BYTES: usize = 4 + 3 + 3 + 4 + 8 + 8 + 8;

/// The rows of a batch, and how many they are.
pub(crate) fn encode(batch: &DeltaBatch<'_>, place: Place) -> Result<(Vec<u8>, usize), DecodeError> {
    let partition = batch.header.partition.cast_unsigned();
    let mut rows = 0;
    let mut out = Vec::with_capacity(batch.deltas.announced() * (ROW_BYTES + 32) + 1024);
    for delta in batch.deltas.clone() {
        let delta = delta?;
        row(&mut out, partition, delta.namespace, delta.key, delta.bucket_s, [delta.sum, delta.events, 0]);
        rows += 1;
    }
    for entry in ledger::rows(place, &batch.header) {
        row(&mut out, partition, RESERVED_NAMESPACE, &entry.key, entry.bucket, [entry.sum, 1, entry.high]);
        rows += 1;
    }
    Ok((out, rows))
}

fn row(out: &mut Vec<u8>, partition: u32, namespace: &str, key: &str, bucket: u32, numbers: [i64; 3]) {
    out.extend_from_slice(&partition.to_le_bytes());
    text(out, namespace);
    text(out, key);
    out.extend_from_slice(&bucket.to_le_bytes());
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// The length in LEB128, then the bytes.
fn text(out: &mut Vec<u8>, text: &str) {
    let mut len = text.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use tally_schemas::{Delta, DeltaBatchHeader, delta_batch};

    use super::*;

    #[test]
    fn a_block_holds_every_delta_and_the_ledger() {
        let header = DeltaBatchHeader {
            topic_id: "id",
            partition: 3,
            from: 10,
            to: 15,
            counted: 4,
            duplicate: 0,
            rejected: 1,
            increments: 9,
            fingerprint: 0,
            correction: false,
        };
        let long = "k".repeat(200);
        let delta = Delta { namespace: "ns", key: &long, bucket_s: 60, sum: -2, events: 9 };
        let mut body = Vec::new();
        delta_batch::encode(&mut body, &header, [delta].into_iter());
        let batch = DeltaBatch::decode(&body).unwrap();
        let place = Place { previous: 7, offset: 9, logged_at_s: 1_700_000_000 };
        let (block, rows) = encode(&batch, place).unwrap();
        assert_eq!(rows, 8);
        let mut expected = vec![3, 0, 0, 0, 2, b'n', b's', 0xc8, 1];
        expected.extend_from_slice(long.as_bytes());
        expected.extend_from_slice(&[60, 0, 0, 0]);
        expected.extend_from_slice(&(-2i64).to_le_bytes());
        expected.extend_from_slice(&9i64.to_le_bytes());
        expected.extend_from_slice(&0i64.to_le_bytes());
        assert_eq!(&block[..expected.len()], &expected[..]);
        assert_eq!(encode(&batch, place).unwrap().0, block);
    }
}
