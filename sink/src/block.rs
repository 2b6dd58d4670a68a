//! The block that a delta batch becomes in ClickHouse: its deltas and its ledger rows, column by
//! column in the Native format, which costs ClickHouse less than half of what rows cost it.
//!
//! ```text
//!  Native: columns, rows │ name, type, values │ name, type, values │ …
//!  values of namespaces: each namespace once, then for each row the number of its namespace
//! ```
//!
//! The block is a function of what Kafka has alone, so any sink at any time makes the same one. It
//! has no column for the partition, which is the same for all rows and stands in the insert.

use std::io::{self, Write};

use bytes::Bytes;
use tally_counts::BatchCheck;
use tally_counts::ledger::{self, BatchOffsets, RESERVED_NAMESPACE};
use tally_kafka::BufferPool;
use tally_platform::delta_batches::Unsound;
use tally_schemas::DeltaBatch;

use crate::row_order::{Namespace, RowOrder};

/// The block's columns, as ClickHouse names and types them.
pub const COLUMNS: [(&str, &str); 6] = [
    ("namespace", "LowCardinality(String)"),
    ("key", "String"),
    ("bucket", "DateTime('UTC')"),
    ("sum", "Int64"),
    ("events", "Int64"),
    ("high", "Int64"),
];

/// The rows of one batch.
#[derive(Default)]
pub struct Block {
    /// Each namespace once, with its length before it.
    namespaces: Vec<u8>,
    /// How many namespaces those are.
    namespace_count: u32,
    /// For each row the number of its namespace.
    namespace_of: Vec<u32>,
    /// The values of each other column, in the order of [`COLUMNS`].
    values: [Vec<u8>; COLUMNS.len() - 1],
    /// The bytes of a row's key in the last block, on average and rounded up.
    key_bytes: usize,
    check: BatchCheck,
    order: RowOrder,
}

/// How ClickHouse writes LowCardinality: this version, with flags that say that the dictionary
/// comes with the block itself.
const DICTIONARY_VERSION: u64 = 1;
const OWN_DICTIONARY: u64 = 1 << 9 | 1 << 10;

impl Block {
    /// The rows of a batch at its offsets: a function of the two, and of nothing else. An error if
    /// the batch is not sound.
    pub fn of(batch: &DeltaBatch<'_>, offsets: BatchOffsets) -> Result<Block, Unsound> {
        let mut block = Block::default();
        block.fill(batch, offsets, &BufferPool::new(0))?;
        Ok(block)
    }

    /// As [`Block::of`], but each namespace's rows are in the order of the batch: ClickHouse has
    /// to sort them.
    pub fn unsorted(batch: &DeltaBatch<'_>, offsets: BatchOffsets) -> Result<Block, Unsound> {
        let mut block = Block::default();
        block.fill_in(batch, offsets, &BufferPool::new(0), |_, _| {})?;
        Ok(block)
    }

    /// As [`Block::of`], in the buffers of the rows that were there, or else in buffers of the
    /// pool. After an error the block must not be used.
    pub(crate) fn fill(
        &mut self,
        batch: &DeltaBatch<'_>,
        offsets: BatchOffsets,
        buffers: &BufferPool,
    ) -> Result<(), Unsound> {
        self.fill_in(batch, offsets, buffers, RowOrder::sort)
    }

    fn fill_in(
        &mut self,
        batch: &DeltaBatch<'_>,
        offsets: BatchOffsets,
        buffers: &BufferPool,
        sort: impl FnOnce(&mut RowOrder, &[Namespace<'_>]),
    ) -> Result<(), Unsound> {
        self.make_room(batch.deltas.announced() + 8, buffers);
        // A batch that did not decode left half of it.
        self.check = BatchCheck::default();
        let mut order = std::mem::take(&mut self.order);
        let namespaces = order.take(batch, |delta| self.check.add(delta))?;
        self.check.finish(&batch.header)?;
        sort(&mut order, &namespaces);
        let mut ledger = Some(ledger::rows(offsets, &batch.header));
        // ClickHouse has the empty text first in each dictionary.
        text(&mut self.namespaces, "");
        let mut last = "";
        self.namespace_count = 1;
        for namespace in &namespaces {
            if namespace.name > RESERVED_NAMESPACE
                && let Some(rows) = ledger.take()
            {
                self.ledger(&mut last, rows);
            }
            let number = self.namespace(&mut last, namespace.name);
            order.for_each(namespace, |row| {
                self.row(number, row.key, row.bucket_s, [row.sum, row.events]);
            });
            // The last column is about the ledger: it is 0 for deltas.
            let [.., highs] = &mut self.values;
            highs.resize(self.namespace_of.len() * size_of::<i64>(), 0);
        }
        if let Some(rows) = ledger {
            self.ledger(&mut last, rows);
        }
        self.order = order;
        let [keys, ..] = &self.values;
        self.key_bytes = keys.len() / self.rows() + 1;
        Ok(())
    }

    fn ledger(&mut self, last: &mut &str, mut rows: [ledger::Row; 7]) {
        let number = self.namespace(last, RESERVED_NAMESPACE);
        rows.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        for row in rows {
            self.row(number, row.key.as_bytes(), row.bucket, [row.sum, 1]);
            let [.., highs] = &mut self.values;
            highs.extend_from_slice(&row.high.to_le_bytes());
        }
    }

    /// The number of a namespace, which is the last one or comes after it.
    fn namespace<'n>(&mut self, last: &mut &'n str, namespace: &'n str) -> u32 {
        if namespace != *last {
            text(&mut self.namespaces, namespace);
            self.namespace_count += 1;
            *last = namespace;
        }
        self.namespace_count - 1
    }

    /// How many rows the block has, ledger rows included.
    pub fn rows(&self) -> usize {
        self.namespace_of.len()
    }

    /// Writes the block in the Native format.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.head())?;
        for (title, values) in titles().iter().zip(&self.values) {
            out.write_all(title)?;
            out.write_all(values)?;
        }
        Ok(())
    }

    /// The block in the Native format, as a list of buffers to be sent one after the other. The
    /// columns' own buffers are lent and not copied, so the block is empty afterwards.
    pub(crate) fn take(&mut self, buffers: &BufferPool) -> Vec<Bytes> {
        let mut parts = vec![Bytes::from(self.head())];
        for (title, values) in titles().into_iter().zip(&mut self.values) {
            parts.push(Bytes::from(title));
            parts.push(buffers.lend(std::mem::take(values)));
        }
        self.namespace_of.clear();
        parts
    }

    /// The bytes before the title of the second column.
    fn head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(self.namespaces.len() + 4 * self.rows() + 64);
        length(&mut head, COLUMNS.len());
        length(&mut head, self.rows());
        title(&mut head, COLUMNS[0]);
        self.write_namespaces(&mut head);
        head
    }

    fn write_namespaces(&self, out: &mut Vec<u8>) {
        // The width is the binary logarithm of a number's bytes.
        let (width, numbers): (u64, Vec<u8>) = match self.namespace_count {
            ..=0x100 => (0, self.namespace_of.iter().map(|number| *number as u8).collect()),
            0x101..=0x1_0000 => (
                1,
                self.namespace_of
                    .iter()
                    .flat_map(|number| (*number as u16).to_le_bytes())
                    .collect(),
            ),
            _ => (2, self.namespace_of.iter().flat_map(|number| number.to_le_bytes()).collect()),
        };
        for number in [DICTIONARY_VERSION, OWN_DICTIONARY | width, u64::from(self.namespace_count)]
        {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.namespaces);
        out.extend_from_slice(&(self.rows() as u64).to_le_bytes());
        out.extend_from_slice(&numbers);
    }

    /// Empties the block, and makes room for so many rows with keys as long as in the last block.
    fn make_room(&mut self, rows: usize, buffers: &BufferPool) {
        self.namespaces.clear();
        self.namespace_count = 0;
        self.namespace_of.clear();
        self.namespace_of.reserve(rows);
        for (values, bytes) in self.values.iter_mut().zip([self.key_bytes, 4, 8, 8, 8]) {
            match values.capacity() {
                0 => *values = buffers.take(rows * bytes),
                _ => values.clear(),
            }
            values.reserve(rows * bytes);
        }
    }

    /// Adds a row, but for its value of the last column.
    #[inline]
    fn row(&mut self, namespace: u32, key: &[u8], bucket: u32, numbers: [i64; 2]) {
        self.namespace_of.push(namespace);
        let [keys, buckets, others @ .., _] = &mut self.values;
        length(keys, key.len());
        keys.extend_from_slice(key);
        buckets.extend_from_slice(&bucket.to_le_bytes());
        for (column, number) in others.iter_mut().zip(numbers) {
            column.extend_from_slice(&number.to_le_bytes());
        }
    }
}

/// The titles of all columns but the first: what comes before their values.
fn titles() -> [Vec<u8>; COLUMNS.len() - 1] {
    std::array::from_fn(|at| {
        let mut out = Vec::new();
        title(&mut out, COLUMNS[at + 1]);
        out
    })
}

fn title(out: &mut Vec<u8>, (name, kind): (&str, &str)) {
    text(out, name);
    text(out, kind);
}

/// Writes the text's length, then its bytes.
fn text(out: &mut Vec<u8>, text: &str) {
    length(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Writes a length in LEB128.
fn length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

#[cfg(test)]
pub(crate) mod tests {
    use tally_counts::Fingerprint;
    use tally_schemas::{Delta, DeltaBatchHeader, delta_batch};

    use super::*;

    pub(crate) const HEADER: DeltaBatchHeader<'static> = DeltaBatchHeader {
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

    #[test]
    fn a_block_holds_every_delta_and_the_ledger_column_by_column() {
        let long = "k".repeat(200);
        let delta = Delta { namespace: "ns", key: &long, bucket_s: 60, sum: -2, events: 9 };
        let mut body = Vec::new();
        let fingerprint = Fingerprint::of_row("ns", &long, 60, -2).to_bits();
        let header = DeltaBatchHeader { fingerprint, ..HEADER };
        delta_batch::encode(&mut body, &header, [delta].into_iter());
        let batch = DeltaBatch::decode(&body).unwrap();
        let offsets = BatchOffsets { previous: 7, offset: 9, logged_at_s: 1_700_000_000 };
        let native = || {
            let mut bytes = Vec::new();
            Block::of(&batch, offsets).unwrap().write_to(&mut bytes).unwrap();
            bytes
        };
        let bytes = native();
        assert_eq!(Block::of(&batch, offsets).unwrap().rows(), 8);
        assert_eq!(bytes, native(), "the same batch is the same block");

        let mut expected = b"\x06\x08\x09namespace\x16LowCardinality(String)".to_vec();
        for number in [1_u64, 0x600, 3] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        expected.extend_from_slice(b"\x00\x07__tally\x02ns");
        expected.extend_from_slice(&8_u64.to_le_bytes());
        expected.extend_from_slice(&[1, 1, 1, 1, 1, 1, 1, 2]);
        expected.extend_from_slice(b"\x03key\x06String");
        let keys = [
            "batch:00000000000000000010",
            "deltas",
            "increments",
            "increments.counted",
            "messages.counted",
            "messages.duplicate",
            "messages.rejected",
        ];
        for key in keys {
            text(&mut expected, key);
        }
        text(&mut expected, &long);
        assert_eq!(&bytes[..expected.len()], &expected[..]);

        // The last column: the ledger's highest offsets, and 0 for the delta.
        let mut high = b"\x04high\x05Int64".to_vec();
        for number in [7i64, 10, 15, 0, 0, 0, 0, 0] {
            high.extend_from_slice(&number.to_le_bytes());
        }
        assert!(bytes.ends_with(&high));

        let parts = Block::of(&batch, offsets).unwrap().take(&BufferPool::new(0));
        assert_eq!(parts.concat(), bytes);
    }

    #[test]
    fn a_batch_that_does_not_decode_leaves_nothing_to_the_next() {
        let delta = Delta { namespace: "ns", key: "k", bucket_s: 60, sum: -2, events: 9 };
        let fingerprint = Fingerprint::of_row("ns", "k", 60, -2).to_bits();
        let offsets = BatchOffsets { previous: 7, offset: 9, logged_at_s: 1_700_000_000 };
        let mut sound = Vec::new();
        let header = DeltaBatchHeader { fingerprint, ..HEADER };
        delta_batch::encode(&mut sound, &header, [delta].into_iter());
        let mut damaged = Vec::new();
        delta_batch::encode(&mut damaged, &header, [delta, delta].into_iter());
        damaged.truncate(damaged.len() - 4);
        let mut block = Block::default();
        let mut fill = |body: &[u8]| {
            block.fill(&DeltaBatch::decode(body).unwrap(), offsets, &BufferPool::new(0))
        };
        assert!(matches!(fill(&damaged), Err(Unsound::Decode(_))));
        assert!(fill(&sound).is_ok());
    }

    #[test]
    fn a_batch_whose_header_is_of_other_deltas_makes_no_block() {
        let delta = Delta { namespace: "ns", key: "k", bucket_s: 60, sum: -2, events: 9 };
        let sound = Fingerprint::of_row("ns", "k", 60, -2).to_bits();
        let offsets = BatchOffsets { previous: 7, offset: 9, logged_at_s: 1_700_000_000 };
        let block = |header: DeltaBatchHeader<'_>| {
            let mut body = Vec::new();
            delta_batch::encode(&mut body, &header, [delta].into_iter());
            Block::of(&DeltaBatch::decode(&body).unwrap(), offsets).err().map(|e| e.to_string())
        };
        assert_eq!(block(DeltaBatchHeader { fingerprint: sound, ..HEADER }), None);
        let forged = block(DeltaBatchHeader { fingerprint: sound ^ 1, ..HEADER }).unwrap();
        assert!(forged.contains("`fingerprint` is"), "{forged}");
        let header = DeltaBatchHeader { fingerprint: sound, increments: 8, ..HEADER };
        let forged = block(header).unwrap();
        assert!(forged.contains("`increments` is 8, but the deltas' events come to 9"), "{forged}");
    }
}
