//! The ledger: rows that the sink stores in the same block as the deltas, under a reserved
//! namespace, and that say which batch the block holds.
//!
//! ```text
//!  delta batch ──► rows: position in deltas, position in increments, account of the messages
//!                        sum (+= to − from) and high (max of to) ──► equal, or a batch is missing
//!                                                                    or was stored twice
//! ```
//!
//! For each Kafka partition, the position in `deltas` and the position in `increments` are stored
//! twice: as differences, which the table sums, and as the next offset, of which the table keeps
//! the maximum. In a whole table both are equal. A sum above the maximum means that a batch was
//! stored twice, one below it that a batch is missing. So the ledger proves itself, however
//! ClickHouse has merged the parts of the table.

use tally_schemas::DeltaBatchHeader;

use crate::next_offset;

/// Tally's own namespace: no increment may use it, and `tally.counters` hides it.
pub const RESERVED_NAMESPACE: &str = "__tally";

/// Key of the position in `deltas`, by which the sink reads on.
pub const DELTAS: &str = "deltas";
/// Key of the position in `increments`: the counts include everything before it.
pub const INCREMENTS: &str = "increments";
/// Keys of the account: messages counted, recognised as duplicates, and rejected; increments added.
pub const COUNTED: &str = "messages.counted";
pub const DUPLICATE: &str = "messages.duplicate";
pub const REJECTED: &str = "messages.rejected";
pub const COUNTED_INCREMENTS: &str = "increments.counted";
/// Prefix of the key of a batch's own row; its next offset in `deltas` follows.
pub const BATCH_PREFIX: &str = "batch:";

/// One ledger row. The sink gives every row one event: ClickHouse's SummingMergeTree would drop a
/// row of zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub key: String,
    /// Seconds since 1970: zero, except in a batch's own row, which expires.
    pub bucket: u32,
    pub sum: i64,
    pub high: i64,
}

/// Where one batch stands in its partition of `deltas`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOffsets {
    /// The next offset after the batch before this one: 0 for the first.
    pub previous: i64,
    /// The batch's own offset.
    pub offset: i64,
    /// Kafka's timestamp of the batch, in seconds since 1970.
    pub logged_at_s: u32,
}

/// The ledger rows of a batch. They depend on Kafka's messages alone, so the same batch always has
/// the same rows.
///
/// The first batch of a partition counts its position in `increments` from zero, wherever the topic
/// began by then.
pub fn rows(place: BatchOffsets, batch: &DeltaBatchHeader<'_>) -> [Row; 7] {
    let next = next_offset(place.offset);
    let source_from = if place.previous == 0 { 0 } else { batch.from };
    let row = |key: &str, sum: i64, high: i64| Row { key: key.into(), bucket: 0, sum, high };
    let total = |key: &str, n: u64| row(key, n.cast_signed(), 0);
    [
        row(DELTAS, next - place.previous, next),
        row(INCREMENTS, batch.to - source_from, batch.to),
        total(COUNTED, batch.counted),
        total(DUPLICATE, batch.duplicate),
        total(REJECTED, batch.rejected),
        total(COUNTED_INCREMENTS, batch.increments),
        Row { key: batch_key(next), bucket: place.logged_at_s, sum: 0, high: place.previous },
    ]
}

/// Twenty digits, so that rows sort by offset.
fn batch_key(next: i64) -> String {
    format!("{BATCH_PREFIX}{next:020}")
}

/// A position as the table holds it: the sum of the differences, and the highest next offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SumAndHigh {
    pub sum: i64,
    pub high: i64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LedgerError {
    #[error(
        "a batch was stored twice: the ledger's differences come to {sum}, its highest offset is \
         {high}"
    )]
    StoredTwice { sum: i64, high: i64 },
    #[error(
        "a batch is missing: the ledger's differences come to {sum}, its highest offset is {high}"
    )]
    Missing { sum: i64, high: i64 },
}

impl SumAndHigh {
    /// The position, if its two halves agree.
    pub fn position(self) -> Result<i64, LedgerError> {
        let SumAndHigh { sum, high } = self;
        match sum.cmp(&high) {
            std::cmp::Ordering::Equal => Ok(high),
            std::cmp::Ordering::Greater => Err(LedgerError::StoredTwice { sum, high }),
            std::cmp::Ordering::Less => Err(LedgerError::Missing { sum, high }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn header(from: i64, to: i64) -> DeltaBatchHeader<'static> {
        DeltaBatchHeader {
            topic_id: "source",
            partition: 0,
            from,
            to,
            counted: (to - from).cast_unsigned(),
            duplicate: 0,
            rejected: 0,
            increments: 3,
            fingerprint: 0,
            correction: false,
        }
    }

    /// What ClickHouse's merges do: sums are added, of `high` the maximum stays.
    fn stored<'a>(blocks: impl Iterator<Item = &'a [Row; 7]>) -> BTreeMap<String, SumAndHigh> {
        let mut table: BTreeMap<String, SumAndHigh> = BTreeMap::new();
        for row in blocks.flatten() {
            let cell = table.entry(row.key.clone()).or_default();
            cell.sum += row.sum;
            cell.high = cell.high.max(row.high);
        }
        table
    }

    /// Batches with transaction markers between them, as in Kafka.
    fn blocks(lens: &[(i64, i64)], start: i64) -> Vec<[Row; 7]> {
        let (mut previous, mut from, mut offset) = (0, start, 0);
        let mut blocks = Vec::new();
        for (len, markers) in lens {
            let to = from + len;
            blocks.push(rows(
                BatchOffsets { previous, offset, logged_at_s: 1_700_000_000 },
                &header(from, to),
            ));
            previous = next_offset(offset);
            offset = previous + markers;
            from = to;
        }
        blocks
    }

    proptest! {
        #[test]
        fn a_whole_ledger_proves_itself_and_a_damaged_one_does_not(
            lens in prop::collection::vec((1i64..1000, 0i64..4), 3..20),
            start in 0i64..500,
            pick: prop::sample::Index,
        ) {
            let blocks = blocks(&lens, start);
            let whole = stored(blocks.iter());
            for key in [DELTAS, INCREMENTS] {
                prop_assert_eq!(whole[key].position(), Ok(whole[key].high));
            }
            prop_assert_eq!(whole[INCREMENTS].high, start + lens.iter().map(|l| l.0).sum::<i64>());

            let victim = pick.index(blocks.len());
            let twice = stored(blocks.iter().chain([&blocks[victim]]));
            let others = blocks.iter().enumerate().filter(|(i, _)| *i != victim);
            let lost = stored(others.map(|(_, block)| block));
            for key in [DELTAS, INCREMENTS] {
                let twice = twice[key].position();
                let is_twice = matches!(twice, Err(LedgerError::StoredTwice { .. }));
                prop_assert!(is_twice);
                // The newest batch of all may be missing: then it is not stored yet.
                let last = victim == blocks.len() - 1;
                prop_assert_eq!(lost[key].position().is_ok(), last);
            }
        }
    }
}
