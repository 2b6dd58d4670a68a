use std::collections::HashSet;

use super::cells::{self, CellTotals, Digest, Names};
use super::{Rejection, Row};
use crate::audit::codec::IncrementBatch;

/// What a message came to, by the auditor's own fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Counted,
    Duplicate,
    Rejected,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct LogMessage {
    pub(super) offset: i64,
    /// The entry of the record that it is of.
    pub(super) mark: Option<u32>,
    pub(super) fate: Fate,
    /// Increments that count.
    pub(super) increments: u32,
    pub(super) digest: Digest,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    /// Its own offset in `deltas`.
    pub(super) offset: i64,
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) numbers: MessageCounts,
    pub(super) digest: Digest,
}

/// Messages by their fate, and increments that count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MessageCounts {
    pub(super) counted: i64,
    pub(super) duplicate: i64,
    pub(super) rejected: i64,
    pub(super) increments: i64,
}

impl MessageCounts {
    pub(super) fn see(&mut self, seen: &LogMessage) {
        match seen.fate {
            Fate::Counted => self.counted += 1,
            Fate::Duplicate => self.duplicate += 1,
            Fate::Rejected => self.rejected += 1,
        }
        self.increments += i64::from(seen.increments);
    }

    pub(super) fn of<'a>(seen: impl IntoIterator<Item = &'a LogMessage>) -> MessageCounts {
        let mut numbers = MessageCounts::default();
        seen.into_iter().for_each(|seen| numbers.see(seen));
        numbers
    }
}

/// The next offsets that ClickHouse does not have, by its ledger.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stored {
    pub(super) increments: i64,
    pub(super) deltas: i64,
}

pub(super) struct Partition {
    /// The first offset of `increments`.
    pub(super) begin: i64,
    pub(super) stored: Stored,
    /// In the order of their offsets.
    pub(super) seen: Vec<LogMessage>,
    pub(super) batches: Vec<Batch>,
    pub(super) rejections: Vec<Rejection>,
    pub(super) ledger: Vec<Row>,
    /// Increments of the log that count, beyond what is stored.
    pub(super) behind: u64,
    /// The counters by the log up to what is stored, by `deltas`, and by the store.
    pub(super) log: CellTotals,
    pub(super) deltas: CellTotals,
    pub(super) store: CellTotals,
    ids: Ids,
}

/// The ids that were seen: those of batches and those of increments have nothing to do with each
/// other.
#[derive(Default)]
struct Ids {
    batches: HashSet<String>,
    /// Namespace, key and id.
    increments: HashSet<(String, String, String)>,
}

impl Partition {
    pub(super) fn new(begin: i64) -> Partition {
        Partition {
            begin,
            stored: Stored::default(),
            behind: 0,
            seen: Vec::new(),
            batches: Vec::new(),
            rejections: Vec::new(),
            ledger: Vec::new(),
            log: CellTotals::new(),
            deltas: CellTotals::new(),
            store: CellTotals::new(),
            ids: Ids::default(),
        }
    }

    /// The next offset after the last message.
    pub(super) fn end(&self) -> i64 {
        self.seen.last().map_or(self.begin, |seen| seen.offset + 1)
    }

    /// The next offset after the last message that a batch covers.
    pub(super) fn covered(&self) -> i64 {
        self.batches.iter().map(|batch| batch.to).max().unwrap_or(self.begin)
    }

    /// The batches that ClickHouse says that it has.
    pub(super) fn stored_batches(&self) -> impl Iterator<Item = &Batch> {
        self.batches.iter().filter(|batch| batch.offset < self.stored.deltas)
    }

    /// The others.
    pub(super) fn waiting_batches(&self) -> impl Iterator<Item = &Batch> {
        self.batches.iter().filter(|batch| batch.offset >= self.stored.deltas)
    }

    pub(super) fn at(&self, offset: i64) -> Option<&LogMessage> {
        let index = self.seen.binary_search_by_key(&offset, |seen| seen.offset).ok()?;
        Some(&self.seen[index])
    }

    /// The messages in [from, to).
    pub(super) fn between(&self, from: i64, to: i64) -> &[LogMessage] {
        let index = |offset| self.seen.partition_point(|seen| seen.offset < offset);
        let (start, end) = (index(from), index(to));
        &self.seen[start.min(end)..end]
    }

    pub(super) fn reject(&mut self, offset: i64, mark: Option<u32>) {
        let (fate, increments, digest) = (Fate::Rejected, 0, Digest::default());
        self.seen.push(LogMessage { offset, mark, fate, increments, digest });
    }

    /// Folds a message: what an id was seen for before does not count again.
    pub(super) fn fold(
        &mut self,
        offset: i64,
        mark: Option<u32>,
        message: &IncrementBatch,
        names: &mut Names,
    ) {
        let is_new = message.id.as_ref().is_none_or(|id| self.ids.batches.insert(id.clone()));
        let mut digest = Digest::default();
        let mut increments = 0;
        for increment in &message.increments {
            let is_first = increment.id.as_ref().is_none_or(|id| {
                let (namespace, key) = (increment.namespace.clone(), increment.key.clone());
                self.ids.increments.insert((namespace, key, id.clone()))
            });
            if is_new && is_first {
                let cell = cells::cell_of(names, increment);
                if offset < self.stored.increments {
                    cells::add(&mut self.log, cell, increment.delta.into(), 1);
                } else {
                    self.behind += 1;
                }
                digest.add(cell, increment.delta, 1);
                increments += 1;
            }
        }
        let fate = if increments > 0 { Fate::Counted } else { Fate::Duplicate };
        self.seen.push(LogMessage { offset, mark, fate, increments, digest });
    }
}
