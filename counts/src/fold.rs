use tally_schemas::{Increment, wire};

use crate::check::check;
use crate::fingerprint::Fingerprinter;
use crate::memory::{Id, Memory};
use crate::sums::Place;
use crate::{Bookmark, Fingerprint, Reject, Rules, Sums, next_offset};

/// The fold of one partition: from messages in offset order to the deltas of a flush and their
/// accounting.
///
/// Every message that was seen ends as counted, duplicate or rejected, and as one of them only.
/// Aggregator and reconciler both fold with this, so equal logs come to equal sums.
///
/// A message whose batch's id is remembered is a duplicate; an increment whose id is remembered is
/// left out, and a message of such increments only is a duplicate too. Whatever becomes of it, a
/// message that may be counted leaves all its ids.
pub struct Fold {
    rules: Rules,
    memory: Memory,
    from: i64,
    to: i64,
    counted: u64,
    duplicate: u64,
    rejected: u64,
    increments: u64,
    duplicates: Duplicates,
    sums: Sums,
    /// Of what was counted and is not in the sums.
    beside: Fingerprint,
    /// Those of the message at hand: a buffer.
    places: Vec<Place>,
    /// Which increments of the message at hand are left out: a buffer.
    repeated: Vec<usize>,
}

/// A message, but for its increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub offset: i64,
    /// The log's own time of the message, in milliseconds since the Unix epoch, if it has one.
    pub timestamp_ms: Option<i64>,
    /// The id of the schema that it is written by.
    pub schema: u32,
    /// The id of the batch as a whole.
    pub batch_id: Option<&'a str>,
}

/// What the messages in [from, to) came to.
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
    pub fingerprint: Fingerprint,
    pub sums: Sums,
}

/// What was recognised by its id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duplicates {
    /// Messages, by the id of their batch.
    pub batches: u64,
    /// Increments, by their own id, in other messages.
    pub increments: u64,
}

impl Fold {
    /// The longest namespace or key, in bytes of UTF-8.
    pub const MAX_NAME_BYTES: usize = 4096;
    /// The most that the deltas of one message may take, by [`Sums::encoded_bytes`].
    pub const MAX_MESSAGE_DELTAS_BYTES: usize = 7 << 20;
    /// The most that the deltas of one flush may take, by [`Sums::encoded_bytes`]: a batch is one
    /// message of at most 16 MiB.
    pub const MAX_DELTAS_BYTES: usize = 15 << 20;

    /// Starts at the next offset to read, with no id remembered.
    pub fn new(rules: Rules, from: i64) -> Fold {
        Fold::remembering(rules, from, Memory::new(rules.horizon))
    }

    /// Starts at the next offset to read. The messages from the bookmark up to there must be
    /// remembered first.
    pub fn resume(rules: Rules, from: i64, bookmark: &Bookmark) -> Fold {
        Fold::remembering(rules, from, Memory::resume(rules.horizon, bookmark))
    }

    fn remembering(rules: Rules, from: i64, memory: Memory) -> Fold {
        Fold {
            rules,
            memory,
            from,
            to: from,
            counted: 0,
            duplicate: 0,
            rejected: 0,
            increments: 0,
            duplicates: Duplicates::default(),
            sums: Sums::new(),
            beside: Fingerprint::ZERO,
            places: Vec::new(),
            repeated: Vec::new(),
        }
    }

    /// Counts a message, whole: either every increment that is no duplicate is added, or none and
    /// the reason comes back, for [`Fold::reject`].
    ///
    /// # Panics
    /// If its offset was seen already: the caller's log is out of order.
    #[inline]
    pub fn count(
        &mut self,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
    ) -> Result<(), Reject> {
        let has_ids = self.place(envelope, increments)?;
        if has_ids {
            return self.count_new(envelope, increments);
        }
        self.sums.add_all(increments, &self.places).map_err(|_| Reject::Overflow)?;
        self.see(envelope.offset);
        self.counted += 1;
        self.increments += increments.len() as u64;
        Ok(())
    }

    /// Counts what of a sound message is no duplicate.
    fn count_new(
        &mut self,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
    ) -> Result<(), Reject> {
        let repeated_batch = self.leave_ids(envelope, increments);
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

    /// Counts a message that was counted before, in a flush that held other sums: where it does not
    /// fit the sums held here, it goes into the fingerprint alone, which wraps. So a replay never
    /// refuses for overflow.
    ///
    /// # Panics
    /// As [`Fold::count`].
    pub fn count_again(
        &mut self,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
    ) -> Result<(), Reject> {
        self.repeated.clear();
        match self.count(envelope, increments) {
            Err(Reject::Overflow) => {}
            counted => return counted,
        }
        let mut rows = Fingerprinter::default();
        let mut repeated = self.repeated.iter().copied().peekable();
        for (index, (increment, place)) in increments.iter().zip(&self.places).enumerate() {
            if repeated.next_if_eq(&index).is_none() {
                let Increment { namespace, key, delta, .. } = *increment;
                self.beside += rows.row(namespace, key, place.bucket(), delta);
            }
        }
        self.see(envelope.offset);
        self.counted += 1;
        self.increments += (increments.len() - self.repeated.len()) as u64;
        self.duplicates.increments += self.repeated.len() as u64;
        Ok(())
    }

    fn add_but_repeated(&mut self, increments: &[Increment<'_>]) -> Result<(), Reject> {
        let added = match self.repeated.is_empty() {
            true => self.sums.add_all(increments, &self.places),
            false => {
                let mut repeated = self.repeated.iter().copied().peekable();
                let is_new = |index: &usize| repeated.next_if_eq(index).is_none();
                let (increments, places): (Vec<_>, Vec<_>) = (0..increments.len())
                    .filter(is_new)
                    .map(|index| (increments[index], self.places[index]))
                    .unzip();
                self.sums.add_all(&increments, &places)
            }
        };
        added.map_err(|_| Reject::Overflow)
    }

    /// Remembers the ids of a message that is not to be counted here: it was before, or it was
    /// rejected for overflow.
    pub fn remember(&mut self, envelope: &Envelope<'_>, increments: &[Increment<'_>]) {
        if let Ok(true) = self.place(envelope, increments) {
            self.leave_ids(envelope, increments);
        }
    }

    /// Remembers the ids of a sound message, and notes which increments are left out; whether its
    /// batch's id was remembered.
    fn leave_ids(&mut self, envelope: &Envelope<'_>, increments: &[Increment<'_>]) -> bool {
        let &Envelope { offset, schema, batch_id, .. } = envelope;
        self.memory.advance(offset);
        self.memory.read(schema, offset);
        self.repeated.clear();
        for (index, increment) in increments.iter().enumerate() {
            if increment.id.is_some_and(|id| self.memory.see(Id::of_increment(id), offset)) {
                self.repeated.push(index);
            }
        }
        batch_id.is_some_and(|id| self.memory.see(Id::of_batch(id), offset))
    }

    /// Places the increments, if each may be counted and all of them together; whether there is an
    /// id in the message.
    #[inline]
    fn place(
        &mut self,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
    ) -> Result<bool, Reject> {
        let mut has_ids = envelope.batch_id.is_some();
        self.places.clear();
        check(&self.rules, envelope.timestamp_ms, increments, |increment, bucket| {
            self.places.push(self.sums.place(increment.namespace, increment.key, bucket));
            has_ids |= increment.id.is_some();
        })?;
        Ok(has_ids)
    }

    /// Accounts for the message at `offset` as rejected.
    pub fn reject(&mut self, offset: i64, reason: Reject, payload: &[u8]) {
        self.pass_over(offset, reason, payload);
        self.see(offset);
        self.rejected += 1;
    }

    /// Notes that a message was rejected, when it was.
    pub fn pass_over(&mut self, offset: i64, reason: Reject, payload: &[u8]) {
        if let (true, Ok((schema, _))) = (reason.is_of_schema(), wire::split(payload)) {
            self.memory.leave_unread(schema, offset);
        }
    }

    /// Whether the message at `offset` was rejected for its schema, by the bookmark that this fold
    /// resumed from.
    pub fn was_unread(&self, offset: i64, payload: &[u8]) -> bool {
        wire::split(payload).is_ok_and(|(schema, _)| self.memory.is_unread(schema, offset))
    }

    fn see(&mut self, offset: i64) {
        assert!(offset >= self.to, "offset {offset} comes after {} was seen", self.to);
        self.to = next_offset(offset);
    }

    /// Whether the sums have room for these increments below [`Fold::MAX_DELTAS_BYTES`]: if not,
    /// take a flush first.
    #[inline]
    pub fn has_room(&self, increments: &[Increment<'_>]) -> bool {
        self.sums.has_room(increments, Self::MAX_DELTAS_BYTES)
    }

    /// Whether nothing was seen since the last flush.
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

    /// What it takes to remember the same ids at [`Fold::next`] again.
    pub fn bookmark(&mut self) -> Bookmark {
        self.memory.bookmark(self.to).by(&self.rules)
    }

    /// How many ids are remembered.
    pub fn remembered_ids(&self) -> usize {
        self.memory.ids()
    }

    /// The memory that remembering them takes, in bytes.
    pub fn remembered_bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// How far back the ids go that are remembered, in offsets.
    pub fn remembered_offsets(&self) -> i64 {
        self.memory.oldest().map_or(0, |oldest| self.to - oldest)
    }

    /// Takes what was summed, and starts the next flush where this one ends.
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
            fingerprint: sums.fingerprint() + std::mem::take(&mut self.beside),
            sums,
        }
    }

    /// Gives the memory of a flush's sums to the next flush. Where something was summed since, it
    /// is dropped instead.
    pub fn reuse(&mut self, mut sums: Sums) {
        if self.sums.is_empty() {
            sums.clear();
            self.sums = sums;
        }
    }
}

#[cfg(test)]
mod tests;
