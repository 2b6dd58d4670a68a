//! The aggregator's state: a fold for each partition that this worker has. No I/O, and no clock of
//! its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tally_counts::{Bookmark, Envelope, Flush, Fold, Reject, Rules, Sums};
use tally_schemas::{Increment, delta_batch, wire};

mod start;

pub(crate) use start::{OtherRules, Rebuilt, Start};

use start::Rebuild;

/// When a flush is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) interval: Duration,
    /// The most bytes of one batch, and of all that is held.
    pub(crate) batch_bytes: usize,
    pub(crate) total_bytes: usize,
}

/// A message that was not counted, on its way to the rejected topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) reason: Reject,
    pub(crate) detail: String,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
}

impl Rejected {
    fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Vec::len)
            + self.key.as_ref().map_or(0, Vec::len)
            + self.detail.len()
            + 64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing to flush.
    Never,
    At(Instant),
    /// A limit is reached: nothing more may be folded before a flush.
    Now,
}

/// What is remembered of a partition's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) ids: usize,
    pub(crate) bytes: usize,
    /// How far back they go.
    pub(crate) offsets: i64,
}

pub(crate) struct Core {
    rules: Rules,
    limits: Limits,
    folds: BTreeMap<i32, Fold>,
    /// Partitions that are read from before their fold.
    rebuilds: BTreeMap<i32, Rebuild>,
    rebuilt: Vec<Rebuilt>,
    /// Flushes of partitions whose batch was as large as one may be, in order; they go out with the
    /// next flush.
    cut: Vec<(i32, Flush)>,
    rejected: Vec<Rejected>,
    rejected_bytes: usize,
    /// When the oldest thing not yet flushed came.
    dirty_since: Option<Instant>,
    full: bool,
}

impl Core {
    pub(crate) fn new(rules: Rules, limits: Limits) -> Core {
        Core {
            rules,
            limits,
            folds: BTreeMap::new(),
            rebuilds: BTreeMap::new(),
            rebuilt: Vec::new(),
            cut: Vec::new(),
            rejected: Vec::new(),
            rejected_bytes: 0,
            dirty_since: None,
            full: false,
        }
    }

    /// Takes a partition on.
    pub(crate) fn assign(&mut self, start: &Start, now: Instant) {
        let fold = match &start.bookmark {
            Some(bookmark) => Fold::resume(self.rules, start.next, bookmark),
            None => Fold::new(self.rules, start.next),
        };
        self.folds.insert(start.partition, fold);
        if let Some(rebuild) = Rebuild::of(start, now) {
            self.rebuilds.insert(start.partition, rebuild);
        }
    }

    /// Drops a partition with what it holds.
    pub(crate) fn forget(&mut self, partition: i32) {
        self.folds.remove(&partition);
        self.rebuilds.remove(&partition);
        self.cut.retain(|(cut, _)| *cut != partition);
        self.rejected.retain(|rejected| rejected.partition != partition);
        self.rejected_bytes = self.rejected.iter().map(Rejected::bytes).sum();
        self.measure();
    }

    pub(crate) fn partitions(&self) -> impl Iterator<Item = i32> + '_ {
        self.folds.keys().copied()
    }

    /// The next offset to read of the partition, if it is assigned.
    pub(crate) fn next(&self, partition: i32) -> Option<i64> {
        match self.rebuilds.get(&partition) {
            Some(rebuild) => Some(rebuild.next),
            None => self.folds.get(&partition).map(Fold::next),
        }
    }

    /// Whether of the message at `offset` only the ids are to be remembered.
    #[inline]
    pub(crate) fn is_before_fold(&mut self, partition: i32, offset: i64) -> bool {
        if self.rebuilds.is_empty() || !self.rebuilds.contains_key(&partition) {
            return false;
        }
        let is_before = offset < self.fold(partition).next();
        if !is_before {
            self.end_rebuild(partition);
        }
        is_before
    }

    /// Whether the message before the fold was rejected for its schema.
    pub(crate) fn was_unread(&mut self, partition: i32, offset: i64, payload: &[u8]) -> bool {
        self.fold(partition).was_unread(offset, payload)
    }

    /// Whether ids come back of which it is known which messages left none: the schema of every
    /// other message was there.
    pub(crate) fn knows_unread(&self, partition: i32) -> bool {
        self.rebuilds.get(&partition).is_some_and(|rebuild| rebuild.is_marked)
    }

    /// Remembers the ids of a message before the fold.
    pub(crate) fn remember(
        &mut self,
        partition: i32,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
        now: Instant,
    ) {
        self.fold(partition).remember(envelope, increments);
        self.see_again(partition, envelope.offset, now);
    }

    /// Passes over a message before the fold that was rejected.
    pub(crate) fn pass_over(
        &mut self,
        partition: i32,
        offset: i64,
        reason: Reject,
        payload: &[u8],
        now: Instant,
    ) {
        self.fold(partition).pass_over(offset, reason, payload);
        self.see_again(partition, offset, now);
    }

    fn see_again(&mut self, partition: i32, offset: i64, now: Instant) {
        let rebuild = self.rebuilds.get_mut(&partition).expect("the message is before the fold");
        rebuild.see(offset, now);
        if rebuild.next >= self.folds[&partition].next() {
            self.end_rebuild(partition);
        }
    }

    fn end_rebuild(&mut self, partition: i32) {
        let rebuild = self.rebuilds.remove(&partition).expect("a rebuild ends once");
        let fold = self.fold(partition);
        let (ids, bytes) = (fold.remembered_ids(), fold.remembered_bytes());
        self.rebuilt.push(rebuild.end(partition, ids, bytes));
    }

    /// A rebuild that has ended.
    pub(crate) fn next_rebuilt(&mut self) -> Option<Rebuilt> {
        self.rebuilt.pop()
    }

    /// What it takes to remember the same ids again at `end`, where the partition's last flush
    /// ends.
    pub(crate) fn bookmark(&mut self, partition: i32, end: i64) -> Bookmark {
        let fold = self.fold(partition);
        assert_eq!(fold.next(), end, "nothing was seen since the flush");
        fold.bookmark()
    }

    pub(crate) fn remembered(&self) -> impl Iterator<Item = (i32, Remembered)> {
        let of = |fold: &Fold| Remembered {
            ids: fold.remembered_ids(),
            bytes: fold.remembered_bytes(),
            offsets: fold.remembered_offsets(),
        };
        self.folds.iter().map(move |(partition, fold)| (*partition, of(fold)))
    }

    fn fold(&mut self, partition: i32) -> &mut Fold {
        self.folds.get_mut(&partition).expect("messages come from assigned partitions")
    }

    /// Counts a message whole, or says why not.
    pub(crate) fn count(
        &mut self,
        partition: i32,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
        now: Instant,
    ) -> Result<(), Reject> {
        let fold = self.folds.get_mut(&partition).expect("messages come from assigned partitions");
        let cuts_before = self.cut.len();
        if !fold.has_room(increments) && !fold.is_clean() {
            self.cut.push((partition, fold.take()));
        }
        let counted = fold.count(envelope, increments);
        if fold.sums().encoded_bytes() >= self.limits.batch_bytes {
            self.cut.push((partition, fold.take()));
        }
        self.dirty_since.get_or_insert(now);
        if self.cut.len() > cuts_before {
            self.measure();
        }
        counted
    }

    /// Accounts for a message that is not counted.
    pub(crate) fn reject(&mut self, rejected: Rejected, now: Instant) {
        let payload = rejected.payload.as_deref().unwrap_or(b"");
        self.fold(rejected.partition).reject(rejected.offset, rejected.reason, payload);
        self.rejected_bytes += rejected.bytes();
        self.rejected.push(rejected);
        self.dirty_since.get_or_insert(now);
        self.full |= self.rejected_bytes >= self.limits.total_bytes;
    }

    /// Looks at the total, which is too dear to do for each message.
    pub(crate) fn measure(&mut self) {
        let open = self.folds.values().map(|fold| fold.sums().encoded_bytes()).sum::<usize>();
        let cut = self.cut.iter().map(|(_, flush)| flush.sums.encoded_bytes()).sum::<usize>();
        self.full = open + cut + self.rejected_bytes >= self.limits.total_bytes;
        if self.cut.is_empty() && self.folds.values().all(Fold::is_clean) {
            self.dirty_since = None;
        }
    }

    pub(crate) fn due(&self) -> Due {
        match self.dirty_since {
            None => Due::Never,
            Some(_) if self.full => Due::Now,
            Some(since) => Due::At(since + self.limits.interval),
        }
    }

    /// Gives the memory of a flush back, once it is encoded.
    pub(crate) fn reuse(&mut self, partition: i32, sums: Sums) {
        if let Some(fold) = self.folds.get_mut(&partition) {
            fold.reuse(sums);
        }
    }

    /// Takes what the partitions hold that `wanted` names: their flushes, each partition's in
    /// order, and their rejected messages.
    pub(crate) fn take(
        &mut self,
        wanted: impl Fn(i32) -> bool,
    ) -> (Vec<(i32, Flush)>, Vec<Rejected>) {
        let (mut flushes, kept): (Vec<_>, _) = std::mem::take(&mut self.cut)
            .into_iter()
            .partition(|(partition, _)| wanted(*partition));
        self.cut = kept;
        let open = self
            .folds
            .iter_mut()
            .filter(|(partition, fold)| wanted(**partition) && !fold.is_clean());
        flushes.extend(open.map(|(partition, fold)| (*partition, fold.take())));
        let (taken, kept) =
            std::mem::take(&mut self.rejected).into_iter().partition(|r| wanted(r.partition));
        self.rejected = kept;
        self.rejected_bytes = self.rejected.iter().map(Rejected::bytes).sum();
        self.measure();
        (flushes, taken)
    }
}

/// A flush as a message on `deltas`.
pub(crate) fn encode(schema_id: u32, topic_id: &str, partition: i32, flush: &Flush) -> Vec<u8> {
    let mut message = Vec::with_capacity(flush.sums.encoded_bytes() + 256);
    message.extend_from_slice(&wire::prefix(schema_id));
    let header = tally_schemas::DeltaBatchHeader {
        topic_id,
        partition,
        from: flush.from,
        to: flush.to,
        counted: flush.counted,
        duplicate: flush.duplicate,
        rejected: flush.rejected,
        increments: flush.increments,
        fingerprint: flush.fingerprint.to_bits(),
        correction: false,
    };
    delta_batch::encode(&mut message, &header, flush.sums.iter());
    message
}

#[cfg(test)]
mod machine;
#[cfg(test)]
mod tests;
