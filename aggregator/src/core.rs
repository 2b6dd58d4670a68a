//! The aggregator's state: a fold for each partition that this worker has. No I/O, and no clock of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tally_counts::{BucketWidth, Flush, Fold, Reject, Sums};
use tally_schemas::{Increment, delta_batch, wire};

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

pub(crate) struct Core {
    width: BucketWidth,
    limits: Limits,
    folds: BTreeMap<i32, Fold>,
    /// Flushes of partitions whose batch was as large as one may be, in order; they go out with the next flush.
    cut: Vec<(i32, Flush)>,
    rejected: Vec<Rejected>,
    rejected_bytes: usize,
    /// When the oldest thing not yet flushed came.
    dirty_since: Option<Instant>,
    full: bool,
}

impl Core {
    pub(crate) fn new(width: BucketWidth, limits: Limits) -> Core {
        Core {
            width,
            limits,
            folds: BTreeMap::new(),
            cut: Vec::new(),
            rejected: Vec::new(),
            rejected_bytes: 0,
            dirty_since: None,
            full: false,
        }
    }

    /// Takes a partition on, from the next offset to read.
    pub(crate) fn assign(&mut self, partition: i32, from: i64) {
        self.folds.insert(partition, Fold::new(self.width, from));
    }

    /// Drops a partition with what it holds.
    pub(crate) fn forget(&mut self, partition: i32) {
        self.folds.remove(&partition);
        self.cut.retain(|(cut, _)| *cut != partition);
        self.rejected.retain(|rejected| rejected.partition != partition);
        self.rejected_bytes = self.rejected.iter().map(Rejected::bytes).sum();
        self.measure();
    }

    pub(crate) fn partitions(&self) -> impl Iterator<Item = i32> + '_ {
        self.folds.keys().copied()
    }

    /// The next offset that the partition expects, if it is assigned.
    pub(crate) fn next(&self, partition: i32) -> Option<i64> {
        self.folds.get(&partition).map(Fold::next)
    }

    /// Counts a message whole, or says why not.
    pub(crate) fn count(
        &mut self,
        partition: i32,
        offset: i64,
        increments: &[Increment<'_>],
        now: Instant,
    ) -> Result<(), Reject> {
        let fold = self.folds.get_mut(&partition).expect("messages come from assigned partitions");
        fold.count(offset, increments)?;
        self.dirty_since.get_or_insert(now);
        if fold.sums().encoded_bytes() >= self.limits.batch_bytes {
            self.cut.push((partition, fold.take()));
            self.measure();
        }
        Ok(())
    }

    /// Accounts for a message that is not counted.
    pub(crate) fn reject(&mut self, rejected: Rejected, now: Instant) {
        let fold = self.folds.get_mut(&rejected.partition).expect("messages come from assigned partitions");
        fold.reject(rejected.offset);
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

    /// Takes what the partitions hold that `wanted` names: their flushes, each partition's in order, and their rejected
    /// messages.
    pub(crate) fn take(&mut self, wanted: impl Fn(i32) -> bool) -> (Vec<(i32, Flush)>, Vec<Rejected>) {
        let (mut flushes, kept): (Vec<_>, _) =
            std::mem::take(&mut self.cut).into_iter().partition(|(partition, _)| wanted(*partition));
        self.cut = kept;
        let open = self.folds.iter_mut().filter(|(partition, fold)| wanted(**partition) && !fold.is_clean());
        flushes.extend(open.map(|(partition, fold)| (*partition, fold.take())));
        let (taken, kept) = std::mem::take(&mut self.rejected).into_iter().partition(|r| wanted(r.partition));
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
mod tests;
