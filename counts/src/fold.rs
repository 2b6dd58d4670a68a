use tally_schemas::{Increment, wire};

use crate::check::check;
use crate::fingerprint::Fingerprinter;
use crate::id_memory::{Id, IdMemory};
use crate::sums::HashedCell;
use crate::{Bookmark, Fingerprint, Reject, Rules, Sums, next_offset};

/// The fold of one partition: it turns messages, in the order of their offsets, into the sums of a
/// flush and an account of the messages.
///
/// Every message ends as counted, duplicate or rejected, and as only one of them. Aggregator and
/// reconciler share this fold, so equal messages give equal sums.
///
/// A message whose batch id is remembered is a duplicate. An increment whose id is remembered is
/// left out, and a message that holds only such increments is a duplicate too. Every message that
/// passes [`check`] leaves all its ids, whether it is counted, a duplicate, or does not fit.
pub struct Fold {
    rules: Rules,
    id_memory: IdMemory,
    /// The next offset after the previous flush.
    from: i64,
    /// The next offset to read.
    to: i64,
    /// Messages since the previous flush.
    counted: u64,
    duplicate: u64,
    rejected: u64,
    /// Increments that were added since the previous flush.
    increments: u64,
    duplicates: Duplicates,
    sums: Sums,
    /// Fingerprint of increments that a replay counted but could not add, because the sum would
    /// have overflowed.
    overflowed: Fingerprint,
    /// The cells of the current message's increments; kept to reuse its memory.
    cells: Vec<HashedCell>,
    /// Which increments of the current message have a remembered id; kept to reuse its memory.
    repeated: Vec<usize>,
}

/// What the fold needs to know of a message besides its increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub offset: i64,
    /// Kafka's timestamp of the record, in milliseconds since 1970, if it has one.
    pub timestamp_ms: Option<i64>,
    /// The registry's id of the writer schema.
    pub schema: u32,
    /// The id of the whole batch, by which all of it counts once.
    pub batch_id: Option<&'a str>,
}

/// As what a message was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedAs {
    New,
    Duplicate,
}

/// What the messages with offsets in [from, to) came to.
pub struct Flush {
    pub from: i64,
    /// The next offset to read.
    pub to: i64,
    /// Messages counted, recognised as duplicates, and rejected.
    pub counted: u64,
    pub duplicate: u64,
    pub rejected: u64,
    /// Increments that were added.
    pub increments: u64,
    pub duplicates: Duplicates,
    /// The fingerprint of the sums and of what did not fit them in a replay.
    pub fingerprint: Fingerprint,
    pub sums: Sums,
}

/// How much was recognised by its id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duplicates {
    /// Messages whose batch id was remembered.
    pub batches: u64,
    /// Increments whose own id was remembered, in all other messages.
    pub increments: u64,
}

impl Fold {
    /// The longest namespace or key, in bytes of UTF-8.
    pub const MAX_NAME_BYTES: usize = 4096;
    /// The most that the deltas of one message may take, by [`Sums::encoded_bytes`].
    pub const MAX_MESSAGE_DELTAS_BYTES: usize = 7 << 20;
    /// The most that the deltas of one flush may take, by [`Sums::encoded_bytes`]: a delta batch is
    /// one message of at most 16 MiB.
    pub const MAX_DELTAS_BYTES: usize = 15 << 20;

    /// A fold that starts at the next offset `from` and remembers no id.
    pub fn new(rules: Rules, from: i64) -> Fold {
        Fold::with_id_memory(rules, from, IdMemory::new(rules.horizon))
    }

    /// A fold that starts at the next offset `from`. The messages from the bookmark up to there
    /// must be given to [`Fold::remember`] or [`Fold::pass_over`] first.
    pub fn resume(rules: Rules, from: i64, bookmark: &Bookmark) -> Fold {
        Fold::with_id_memory(rules, from, IdMemory::resume(rules.horizon, bookmark))
    }

    fn with_id_memory(rules: Rules, from: i64, id_memory: IdMemory) -> Fold {
        Fold {
            rules,
            id_memory,
            from,
            to: from,
            counted: 0,
            duplicate: 0,
            rejected: 0,
            increments: 0,
            duplicates: Duplicates::default(),
            sums: Sums::new(),
            overflowed: Fingerprint::ZERO,
            cells: Vec::new(),
            repeated: Vec::new(),
        }
    }

    /// Counts a message as a whole: adds every increment that is no duplicate, or adds none and
    /// returns the reason, which the caller passes to [`Fold::reject`].
    ///
    /// # Panics
    /// If the offset was seen before: the caller's messages are out of order.
    #[inline]
    pub fn count(
        &mut self,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
    ) -> Result<(), Reject> {
        let has_ids = self.check(envelope, increments)?;
        if has_ids {
            return self.count_new(envelope, increments);
        }
        self.sums.add_all(increments, &self.cells).map_err(|_| Reject::Overflow)?;
        self.see(envelope.offset);
        self.counted += 1;
        self.increments += increments.len() as u64;
        Ok(())
    }

    /// Counts those increments of a checked message that are no duplicates.
    fn count_new(
        &mut self,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
    ) -> Result<(), Reject> {
        let repeated_batch = self.remember_ids(envelope, increments);
        if repeated_batch {
            self.duplicates.batches += 1;
        }
        let repeated = self.repeated.len();
        if repeated_batch || (repeated > 0 && repeated == increments.len()) {
            self.see(envelope.offset);
            self.duplicate += 1;
        } else {
            self.add_but_repeated(increments)?;
            self.see(envelope.offset);
            self.counted += 1;
            self.increments += (increments.len() - repeated) as u64;
        }
        if !repeated_batch {
            self.duplicates.increments += repeated as u64;
        }
        Ok(())
    }

    /// Counts a message of a replay, which was counted before, in a flush that held other sums.
    /// Where it does not fit the sums held here, it only goes into the fingerprint, which wraps. So
    /// the error is never [`Reject::Overflow`].
    ///
    /// # Panics
    /// As [`Fold::count`].
    pub fn count_again(
        &mut self,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
    ) -> Result<CountedAs, Reject> {
        self.repeated.clear();
        let duplicates = self.duplicate;
        match self.count(envelope, increments) {
            Err(Reject::Overflow) => {}
            Err(reason) => return Err(reason),
            Ok(()) if self.duplicate > duplicates => return Ok(CountedAs::Duplicate),
            Ok(()) => return Ok(CountedAs::New),
        }
        let mut rows = Fingerprinter::default();
        let mut repeated = self.repeated.iter().copied().peekable();
        for (index, (increment, cell)) in increments.iter().zip(&self.cells).enumerate() {
            if repeated.next_if_eq(&index).is_none() {
                let Increment { namespace, key, delta, .. } = *increment;
                self.overflowed += rows.row(namespace, key, cell.bucket(), delta);
            }
        }
        self.see(envelope.offset);
        self.counted += 1;
        self.increments += (increments.len() - self.repeated.len()) as u64;
        self.duplicates.increments += self.repeated.len() as u64;
        Ok(CountedAs::New)
    }

    fn add_but_repeated(&mut self, increments: &[Increment<'_>]) -> Result<(), Reject> {
        let added = if self.repeated.is_empty() {
            self.sums.add_all(increments, &self.cells)
        } else {
            let mut repeated = self.repeated.iter().copied().peekable();
            let is_new = |index: &usize| repeated.next_if_eq(index).is_none();
            let (increments, cells): (Vec<_>, Vec<_>) = (0..increments.len())
                .filter(is_new)
                .map(|index| (increments[index], self.cells[index]))
                .unzip();
            self.sums.add_all(&increments, &cells)
        };
        added.map_err(|_| Reject::Overflow)
    }

    /// Remembers the ids of a message without counting it: it was counted before this fold starts,
    /// or it was rejected for overflow.
    pub fn remember(&mut self, envelope: &Envelope<'_>, increments: &[Increment<'_>]) {
        if let Ok(true) = self.check(envelope, increments) {
            self.remember_ids(envelope, increments);
        }
    }

    /// Remembers the ids of a checked message, and fills `repeated` with the increments whose ids
    /// were remembered before; returns whether the batch id was.
    fn remember_ids(&mut self, envelope: &Envelope<'_>, increments: &[Increment<'_>]) -> bool {
        let &Envelope { offset, schema, batch_id, .. } = envelope;
        self.id_memory.advance(offset);
        self.id_memory.note_read(schema, offset);
        self.repeated.clear();
        for (index, increment) in increments.iter().enumerate() {
            if increment.id.is_some_and(|id| self.id_memory.see(Id::of_increment(id), offset)) {
                self.repeated.push(index);
            }
        }
        batch_id.is_some_and(|id| self.id_memory.see(Id::of_batch(id), offset))
    }

    /// Checks a message and fills `cells`, in one pass; returns whether it holds any id.
    #[inline]
    fn check(
        &mut self,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
    ) -> Result<bool, Reject> {
        let mut has_ids = envelope.batch_id.is_some();
        self.cells.clear();
        check(&self.rules, envelope.timestamp_ms, increments, |increment, bucket| {
            self.cells.push(self.sums.hash_cell(increment.namespace, increment.key, bucket));
            has_ids |= increment.id.is_some();
        })?;
        Ok(has_ids)
    }

    /// Accounts for the message at `offset` as rejected; `payload` tells its schema.
    ///
    /// # Panics
    /// As [`Fold::count`].
    pub fn reject(&mut self, offset: i64, reason: Reject, payload: &[u8]) {
        self.pass_over(offset, reason, payload);
        self.see(offset);
        self.rejected += 1;
    }

    /// Notes that a message before this fold's start was rejected, for the ids that it may have
    /// held.
    pub fn pass_over(&mut self, offset: i64, reason: Reject, payload: &[u8]) {
        if let (true, Ok((schema, _))) = (reason.is_of_schema(), wire::split(payload)) {
            self.id_memory.note_unread(schema, offset);
        }
    }

    /// Whether the message at `offset` was rejected for its schema, as the bookmark says that this
    /// fold resumed from.
    pub fn was_unread(&self, offset: i64, payload: &[u8]) -> bool {
        wire::split(payload).is_ok_and(|(schema, _)| self.id_memory.is_unread(schema, offset))
    }

    fn see(&mut self, offset: i64) {
        assert!(offset >= self.to, "offset {offset} comes after {} was seen", self.to);
        self.to = next_offset(offset);
    }

    /// Whether the sums with these increments added stay below [`Fold::MAX_DELTAS_BYTES`]. If not,
    /// the caller takes a flush first.
    #[inline]
    pub fn has_room(&self, increments: &[Increment<'_>]) -> bool {
        self.sums.has_room(increments, Self::MAX_DELTAS_BYTES)
    }

    /// Whether no message was seen since the last flush.
    pub fn is_clean(&self) -> bool {
        self.from == self.to
    }

    /// The next offset to read.
    pub fn next(&self) -> i64 {
        self.to
    }

    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// The bookmark by which another fold can remember the same ids at [`Fold::next`].
    pub fn bookmark(&mut self) -> Bookmark {
        self.id_memory.bookmark(self.to).by(&self.rules)
    }

    /// How many ids are remembered.
    pub fn remembered_ids(&self) -> usize {
        self.id_memory.ids()
    }

    /// The memory that the remembered ids take, in bytes.
    pub fn remembered_bytes(&self) -> usize {
        self.id_memory.bytes()
    }

    /// How far back the oldest remembered id is, in offsets.
    pub fn remembered_offsets(&self) -> i64 {
        self.id_memory.oldest().map_or(0, |oldest| self.to - oldest)
    }

    /// Takes the sums and the account of the messages; the next flush starts where this one ends.
    pub fn take(&mut self) -> Flush {
        let sums = std::mem::take(&mut self.sums);
        let count = std::mem::take::<u64>;
        Flush {
            from: std::mem::replace(&mut self.from, self.to),
            to: self.to,
            counted: count(&mut self.counted),
            duplicate: count(&mut self.duplicate),
            rejected: count(&mut self.rejected),
            increments: count(&mut self.increments),
            duplicates: std::mem::take(&mut self.duplicates),
            fingerprint: sums.fingerprint() + std::mem::take(&mut self.overflowed),
            sums,
        }
    }

    /// Gives the allocations of a flush's sums to the next flush. If something was summed since,
    /// they are freed instead.
    pub fn reuse(&mut self, mut sums: Sums) {
        if self.sums.is_empty() {
            sums.clear();
            self.sums = sums;
        }
    }
}

#[cfg(test)]
mod tests;
