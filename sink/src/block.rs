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
use hashbrown::HashMap;
use tally_counts::BatchCheck;
use tally_counts::ledger::{self, BatchOffsets, RESERVED_NAMESPACE};
use tally_kafka::BufferPool;
use tally_platform::delta_batches::Unsound;
use tally_schemas::DeltaBatch;

use crate::row_order::{self, OrderedDelta};

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
    /// Empty, but for its room.
    order: Vec<OrderedDelta>,
}

/// Numbers for texts, as they come.
#[derive(Default)]
struct Numbers<'a> {
    of: HashMap<&'a str, u32>,
    texts: Vec<&'a str>,
}

impl<'a> Numbers<'a> {
    #[inline(never)]
    fn number(&mut self, text: &'a str) -> u32 {
        *self.of.entry(text).or_insert_with(|| {
            self.texts.push(text);
            self.texts.len() as u32 - 1
        })
    }
}

/// The namespaces whose numbers are found without a hash.
const RECENT: usize = 64;

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

    /// As [`Block::of`], in the buffers of the rows that were there, or else in buffers of the
    /// pool. After an error the block must not be used.
    pub(crate) fn fill(
        &mut self,
        batch: &DeltaBatch<'_>,
        offsets: BatchOffsets,
        buffers: &BufferPool,
    ) -> Result<(), Unsound> {
        self.make_room(batch.deltas.announced() + 8, buffers);
        // A batch that did not decode left half of it.
        self.check = BatchCheck::default();
        let (mut order, ledger) = self.order(batch)?;
        let ledger_at = order.partition_point(|delta| delta.namespace < ledger);
        self.deltas(batch, &order[..ledger_at]);
        let mut rows = ledger::rows(offsets, &batch.header);
        rows.sort_by(|one, other| one.key.cmp(&other.key));
        for row in rows {
            self.row(ledger, &row.key, row.bucket, [row.sum, 1]);
            let [.., highs] = &mut self.values;
            highs.extend_from_slice(&row.high.to_le_bytes());
        }
        self.deltas(batch, &order[ledger_at..]);
        self.check.finish(&batch.header)?;
        order.clear();
        self.order = order;
        let [keys, ..] = &self.values;
        self.key_bytes = keys.len() / self.rows() + 1;
        Ok(())
    }

    /// The batch's deltas in the order of the block, their namespaces numbered in that order, and
    /// the number of the ledger's namespace.
    fn order(&mut self, batch: &DeltaBatch<'_>) -> Result<(Vec<OrderedDelta>, u32), Unsound> {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.reserve(batch.deltas.announced());
        let mut namespaces = Numbers::default();
        // ClickHouse has the empty text first in each dictionary.
        namespaces.number("");
        let ledger = namespaces.number(RESERVED_NAMESPACE);
        // A batch mostly has few namespaces, and finds them here without a hash.
        let mut recent = [("", 0); RECENT];
        for delta in batch.placed() {
            let (place, delta) = delta?;
            let recent = &mut recent[recent_at(delta.namespace)];
            if !is_same(recent.0, delta.namespace) {
                *recent = (delta.namespace, namespaces.number(delta.namespace));
            }
            order.push(OrderedDelta::new(recent.1, delta.key, place));
        }
        let ranks = self.write_dictionary(namespaces.texts);
        for delta in &mut order {
            delta.namespace = ranks[delta.namespace as usize];
        }
        row_order::sort(&mut order, batch);
        Ok((order, ranks[ledger as usize]))
    }

    /// Writes the namespaces in their order, and returns the place of each in it.
    fn write_dictionary(&mut self, namespaces: Vec<&str>) -> Vec<u32> {
        let mut order: Vec<usize> = (0..namespaces.len()).collect();
        order.sort_unstable_by_key(|&number| namespaces[number]);
        let mut ranks = vec![0; namespaces.len()];
        for (rank, number) in order.into_iter().enumerate() {
            text(&mut self.namespaces, namespaces[number]);
            ranks[number] = rank as u32;
        }
        self.namespace_count = namespaces.len() as u32;
        ranks
    }

    fn deltas(&mut self, batch: &DeltaBatch<'_>, order: &[OrderedDelta]) {
        for ordered in order {
            let delta = batch.delta(ordered.place);
            self.check.add(&delta);
            let numbers = [delta.sum, delta.events];
            self.row(ordered.namespace, delta.key, delta.bucket_s, numbers);
        }
        // The last column is about the ledger: it is 0 for deltas.
        let [.., highs] = &mut self.values;
        highs.resize(self.namespace_of.len() * size_of::<i64>(), 0);
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
    fn row(&mut self, namespace: u32, key: &str, bucket: u32, numbers: [i64; 2]) {
        self.namespace_of.push(namespace);
        let [keys, buckets, others @ .., _] = &mut self.values;
        text(keys, key);
        buckets.extend_from_slice(&bucket.to_le_bytes());
        for (column, number) in others.iter_mut().zip(numbers) {
            column.extend_from_slice(&number.to_le_bytes());
        }
    }
}

/// The slot of `recent` where a namespace is looked for. It is a hash of the name's end, where
/// names that are alike mostly differ.
#[inline]
fn recent_at(namespace: &str) -> usize {
    let bytes = namespace.as_bytes();
    let end = match bytes.last_chunk() {
        Some(end) => u32::from_le_bytes(*end),
        None => bytes.iter().fold(0, |end, byte| end << 8 | u32::from(*byte)),
    };
    let mixed = (end ^ bytes.len() as u32).wrapping_mul(0x9e37_79b1);
    (mixed >> (u32::BITS - RECENT.trailing_zeros())) as usize
}

/// Equality, without a function call for texts of 4 to 16 bytes.
#[inline]
fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    match one.len() {
        length if length != other.len() => false,
        4..8 => {
            one.first_chunk::<4>() == other.first_chunk()
                && one.last_chunk::<4>() == other.last_chunk()
        }
        8..=16 => {
            one.first_chunk::<8>() == other.first_chunk()
                && one.last_chunk::<8>() == other.last_chunk()
        }
        _ => one == other,
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
mod tests {
    use tally_counts::Fingerprint;
    use tally_schemas::{Delta, DeltaBatchHeader, delta_batch};

    use super::*;

    const HEADER: DeltaBatchHeader<'static> = DeltaBatchHeader {
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
    fn texts_are_the_same_if_every_byte_is() {
        for length in 0..40 {
            let text = "abcdefgh".repeat(5)[..length].to_owned();
            assert!(is_same(&text, &text.clone()));
            assert!(!is_same(&text, &format!("{text}a")));
            for at in 0..length {
                let mut other = text.clone();
                other.replace_range(at..=at, "z");
                assert!(!is_same(&text, &other), "{text} and {other}");
            }
        }
    }

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
