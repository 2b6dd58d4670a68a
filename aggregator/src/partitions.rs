//! The partitions that this worker holds: the state of each, what is summed of it, and when that is
//! to be flushed. No I/O, and no clock of its own.
//!
//! ```text
//!  group, locator, registry ── Event ──► step ──► one map of states ── Action ──► fetcher, locator
//!                  messages ── count, reject, restore ──► │
//!                                                         └── due, take ──► flush
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tally_counts::{Bookmark, Envelope, Flush, Fold, Reject, Rules, Sums};
use tally_schemas::{Increment, delta_batch, wire};

mod flush_size;
mod resume;
mod state;

use self::flush_size::FlushSize;
use self::resume::Restore;
pub(crate) use self::resume::{Gone, OtherRules, Restored, ResumePoint};
pub(crate) use self::state::{Action, Event, State, Ticket};

/// When a flush is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) interval: Duration,
    /// The most bytes of one delta batch, encoded.
    pub(crate) batch_bytes: usize,
    /// The most bytes of all sums and rejected messages that are held, encoded.
    pub(crate) total_bytes: usize,
    /// How long a schema is waited for that the registry does not have any more, before the ids of
    /// its messages are given up.
    pub(crate) gone_after: Duration,
}

/// A message that was not counted, on its way to the rejected topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) reason: Reject,
    pub(crate) detail: String,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
    /// What was left out of key and payload.
    pub(crate) truncated: Option<String>,
}

impl Rejected {
    pub(crate) fn bytes(&self) -> usize {
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

/// How many ids of a partition are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) ids: usize,
    /// The memory that they take.
    pub(crate) bytes: usize,
    /// How far back they go.
    pub(crate) offsets: i64,
}

pub(crate) struct Partitions {
    rules: Rules,
    limits: Limits,
    /// What is to be flushed at most at once; no more than the limit.
    flush_size: FlushSize,
    /// The state of each partition that the group gave and has not taken back.
    states: BTreeMap<i32, State>,
    /// The ticket of the next request to the locator.
    ticket: Ticket,
    restored: Vec<Restored>,
    /// Flushes of partitions whose batch was as large as one may be, in order; they go out with the
    /// next flush.
    cut: Vec<(i32, Flush)>,
    rejected: Vec<Rejected>,
    rejected_bytes: usize,
    /// When the oldest thing not yet flushed came.
    dirty_since: Option<Instant>,
    /// Kafka's time of the first message of each partition that is not yet flushed, if it has one.
    oldest_ms: BTreeMap<i32, Option<i64>>,
    full: bool,
}

impl Partitions {
    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) fn new(rules: Rules, limits: Limits) -> Partitions {
        Partitions {
            rules,
            limits,
            flush_size: FlushSize::new(limits.total_bytes),
            states: BTreeMap::new(),
            ticket: Ticket(0),
            restored: Vec::new(),
            cut: Vec::new(),
            rejected: Vec::new(),
            rejected_bytes: 0,
            dirty_since: None,
            oldest_ms: BTreeMap::new(),
            full: false,
        }
    }

    /// Moves a partition to its next state, and says what the fetcher and the locator are to do.
    pub(crate) fn step(&mut self, partition: i32, event: Event, now: Instant) -> Action {
        self.ticket.0 += 1;
        let rules = self.rules;
        let located = |point: &ResumePoint| {
            let fold = match &point.bookmark {
                Some(bookmark) => Fold::resume(rules, point.next, bookmark),
                None => Fold::new(rules, point.next),
            };
            (fold, Restore::of(point, now))
        };
        let state = self.states.remove(&partition);
        let had_fold = state.as_ref().is_some_and(|state| state.fold().is_some());
        let (state, action) = state::after(state, event, self.ticket, located);
        let has_fold = state.as_ref().is_some_and(|state| state.fold().is_some());
        if let Some(state) = state {
            self.states.insert(partition, state);
        }
        if had_fold && !has_fold {
            self.drop_sums(partition);
        }
        action
    }

    /// Drops what is to be flushed of a partition whose fold is gone.
    fn drop_sums(&mut self, partition: i32) {
        self.cut.retain(|(cut, _)| *cut != partition);
        self.oldest_ms.remove(&partition);
        self.rejected.retain(|rejected| rejected.partition != partition);
        self.rejected_bytes = self.rejected.iter().map(Rejected::bytes).sum();
        self.measure();
    }

    /// The partitions that the group gave and has not taken back.
    pub(crate) fn held(&self) -> Vec<i32> {
        self.states.keys().copied().collect()
    }

    /// What each of them is doing, in a word.
    pub(crate) fn states(&self) -> Vec<(i32, &'static str)> {
        self.states.iter().map(|(partition, state)| (*partition, state.name())).collect()
    }

    /// The partitions that have something to lose: those whose resume point was found.
    pub(crate) fn located(&self) -> Vec<i32> {
        let located = self.states.iter().filter(|(_, state)| state.fold().is_some());
        located.map(|(partition, _)| *partition).collect()
    }

    /// The partitions that wait for a schema, and its id.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (i32, u32)> {
        self.states.iter().filter_map(|(partition, state)| match state {
            State::WaitingForSchema { schema, .. } => Some((*partition, *schema)),
            _ => None,
        })
    }

    /// Whether the message at `offset` leaves only its ids, because it was counted or rejected
    /// before.
    ///
    /// # Panics
    /// If the partition is not read.
    #[inline]
    pub(crate) fn is_to_restore(&mut self, partition: i32, offset: i64) -> bool {
        match self.states.get(&partition) {
            Some(State::Counting(_)) => false,
            Some(State::Restoring { fold, .. }) => {
                let is_before = offset < fold.next();
                if !is_before {
                    self.end_restore(partition);
                }
                is_before
            }
            _ => panic!("a message of partition {partition} came, which is not read"),
        }
    }

    /// Whether the message, whose ids are to be restored, was rejected for its schema.
    pub(crate) fn was_unread(&mut self, partition: i32, offset: i64, payload: &[u8]) -> bool {
        self.fold(partition).was_unread(offset, payload)
    }

    /// Whether a partition waits for the schema of a message whose ids are to be restored, although
    /// the registry says that it has none.
    ///
    /// Where ids are restored by a bookmark, that names the messages that were rejected for their
    /// schema and left no ids. So this one was counted, and its schema was there.
    pub(crate) fn waits_for_gone(&mut self, partition: i32, now: Instant) -> bool {
        let patience = self.limits.gone_after;
        match self.states.get_mut(&partition) {
            Some(State::Restoring { restore, .. })
            | Some(State::WaitingForSchema { restore: Some(restore), .. }) => {
                restore.is_marked && restore.waits(patience, now)
            }
            _ => false,
        }
    }

    /// Gives up the ids of a message whose schema is gone.
    pub(crate) fn miss(&mut self, partition: i32, offset: i64, schema: u32) {
        if let Some(State::Restoring { restore, .. }) = self.states.get_mut(&partition)
            && restore.is_marked
        {
            restore.miss(offset, schema);
        }
    }

    /// Remembers the ids of a message that was counted before.
    pub(crate) fn remember(
        &mut self,
        partition: i32,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
        now: Instant,
    ) {
        if let Some(State::Restoring { restore, .. }) = self.states.get_mut(&partition) {
            restore.found();
        }
        self.fold(partition).remember(envelope, increments);
        self.restored_up_to(partition, envelope.offset, now);
    }

    /// Passes over a message that was rejected before.
    pub(crate) fn pass_over(
        &mut self,
        partition: i32,
        offset: i64,
        reason: Reject,
        payload: &[u8],
        now: Instant,
    ) {
        self.fold(partition).pass_over(offset, reason, payload);
        self.restored_up_to(partition, offset, now);
    }

    fn restored_up_to(&mut self, partition: i32, offset: i64, now: Instant) {
        let Some(State::Restoring { fold, restore }) = self.states.get_mut(&partition) else {
            panic!("partition {partition} restores no ids");
        };
        restore.see(offset, now);
        if restore.next >= fold.next() {
            self.end_restore(partition);
        }
    }

    /// From now on messages of the partition are counted.
    fn end_restore(&mut self, partition: i32) {
        let Some(State::Restoring { fold, restore }) = self.states.remove(&partition) else {
            panic!("partition {partition} restores no ids");
        };
        let (ids, bytes) = (fold.remembered_ids(), fold.remembered_bytes());
        self.restored.push(restore.end(partition, ids, bytes));
        self.states.insert(partition, State::Counting(fold));
    }

    /// A restore that has ended.
    pub(crate) fn next_restored(&mut self) -> Option<Restored> {
        self.restored.pop()
    }

    /// The bookmark that restores the same ids at `end`, where the partition's last flush ends.
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
        self.folds().map(move |(partition, fold)| (partition, of(fold)))
    }

    fn folds(&self) -> impl Iterator<Item = (i32, &Fold)> {
        self.states.iter().filter_map(|(partition, state)| Some((*partition, state.fold()?)))
    }

    fn fold(&mut self, partition: i32) -> &mut Fold {
        let state = self.states.get_mut(&partition);
        state.and_then(State::fold_mut).expect("messages come of partitions that are read")
    }

    /// Counts a message whole, or says why not.
    pub(crate) fn count(
        &mut self,
        partition: i32,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
        now: Instant,
    ) -> Result<(), Reject> {
        let Some(State::Counting(fold)) = self.states.get_mut(&partition) else {
            panic!("a message of partition {partition} came, which is not counted");
        };
        if fold.is_clean() {
            self.oldest_ms.entry(partition).or_insert(envelope.timestamp_ms);
        }
        let cuts_before = self.cut.len();
        if !fold.has_room(increments) && !fold.is_clean() {
            self.cut.push((partition, fold.take()));
        }
        let counted = fold.count(envelope, increments);
        if fold.sums().encoded_bytes() >= self.limits.batch_bytes {
            self.cut.push((partition, fold.take()));
        }
        self.dirty_since.get_or_insert(now);
        if self.cut.len() > cuts_before || self.flush_size.is_reduced() {
            self.measure();
        }
        counted.map(drop)
    }

    /// Accounts for a message that is not counted, with this payload.
    pub(crate) fn reject(&mut self, rejected: Rejected, payload: &[u8], now: Instant) {
        let fold = self.fold(rejected.partition);
        let is_first = fold.is_clean();
        fold.reject(rejected.offset, rejected.reason, payload);
        if is_first {
            self.oldest_ms.entry(rejected.partition).or_insert(rejected.timestamp_ms);
        }
        self.rejected_bytes += rejected.bytes();
        self.rejected.push(rejected);
        self.dirty_since.get_or_insert(now);
        self.full |= self.rejected_bytes >= self.flush_size.bytes();
        if self.flush_size.is_reduced() {
            self.measure();
        }
    }

    /// Looks at the total, which is too dear to do for each message, but where flushes are kept
    /// short.
    pub(crate) fn measure(&mut self) {
        let open = self.folds().map(|(_, fold)| fold.sums().encoded_bytes()).sum::<usize>();
        let cut = self.cut.iter().map(|(_, flush)| flush.sums.encoded_bytes()).sum::<usize>();
        self.full = open + cut + self.rejected_bytes >= self.flush_size.bytes();
        if self.cut.is_empty() && self.folds().all(|(_, fold)| fold.is_clean()) {
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

    /// Kafka's time of the first message of a partition that is not yet flushed.
    pub(crate) fn oldest_ms(&self, partition: i32) -> Option<i64> {
        self.oldest_ms.get(&partition).copied().flatten()
    }

    /// As [`Partitions::oldest_ms`], for a flush that was taken.
    pub(crate) fn take_oldest_ms(&mut self, partition: i32) -> Option<i64> {
        self.oldest_ms.remove(&partition).flatten()
    }

    /// How many bytes the next flush may hold.
    pub(crate) fn flush_size(&mut self) -> &mut FlushSize {
        &mut self.flush_size
    }

    /// Gives the memory of a flush back, once it is encoded.
    pub(crate) fn reuse(&mut self, partition: i32, sums: Sums) {
        if let Some(fold) = self.states.get_mut(&partition).and_then(State::fold_mut) {
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
        for (partition, state) in
            self.states.iter_mut().filter(|(partition, _)| wanted(**partition))
        {
            let fold = state.fold_mut().filter(|fold| !fold.is_clean());
            flushes.extend(fold.map(|fold| (*partition, fold.take())));
        }
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
        fingerprint: flush.sums.fingerprint().to_bits(),
        correction: false,
    };
    delta_batch::encode(&mut message, &header, flush.sums.iter());
    message
}

#[cfg(test)]
mod machine;
#[cfg(test)]
mod tests;
