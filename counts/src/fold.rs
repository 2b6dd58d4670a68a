use std::collections::BTreeMap;

use tally_schemas::{Increment, wire};

use crate::check::check;
use crate::id_memory::{Id, IdMemory, is_id};
use crate::sums::HashedCell;
use crate::{Bookmark, Reject, Rules, Sums, next_offset};

/// The fold of one partition: it turns messages, in the order of their offsets, into the sums of a
/// flush and an account of the messages.
///
/// Every message ends as counted, duplicate or rejected, and as only one of them. Aggregator and
/// reconciler share this fold, so equal messages give equal sums.
///
/// A message whose batch id is remembered is a duplicate. An increment whose id is remembered is
/// left out, and a message that holds only such increments is a duplicate too. What becomes of a
/// message hangs on that message and on ids alone, never on what others added: one that passes
/// [`check`] is counted or a duplicate, and leaves all its ids.
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
    /// The cells of the current message's increments; kept to reuse its memory.
    cells: Vec<HashedCell>,
    /// Which increments of the current message have a remembered id; kept to reuse its memory.
    repeated: Vec<usize>,
    /// Bytes of an id that are hashed; kept to reuse its memory.
    id_bytes: Vec<u8>,
}

/// What the fold needs to know of a message besides its increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub offset: i64,
    /// Kafka's timestamp of the record, in milliseconds since 1970, if it has one.
    pub timestamp_ms: Option<i64>,
    /// The registry's id of the writer schema.
    pub schema: u32,
    /// The id of the whole batch, by which all of it counts once; an empty one is none.
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
    pub sums: Sums,
}

/// How much was recognised by its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duplicates {
    /// Messages whose batch id was remembered.
    pub batches: u64,
    /// Increments whose own id was remembered, in all other messages.
    pub increments: u64,
    /// Increments that did not count for either reason, by namespace; those of namespaces beyond
    /// [`Duplicates::MAX_NAMESPACES`] under the empty name.
    pub by_namespace: BTreeMap<String, u64>,
}

impl Duplicates {
    /// The most namespaces that duplicates are told of one by one.
    pub const MAX_NAMESPACES: usize = 100;

    fn add(&mut self, namespace: &str) {
        let is_told = self.by_namespace.len() < Self::MAX_NAMESPACES;
        match self.by_namespace.get_mut(namespace) {
            Some(count) => *count += 1,
            None => {
                let name = if is_told { namespace } else { "" };
                *self.by_namespace.entry(name.to_owned()).or_default() += 1;
            }
        }
    }

    /// Adds those of another flush.
    pub fn merge(&mut self, other: &Duplicates) {
        self.batches += other.batches;
        self.increments += other.increments;
        for (namespace, count) in &other.by_namespace {
            *self.by_namespace.entry(namespace.clone()).or_default() += count;
        }
    }
}

impl Fold {
    /// The longest namespace or key, in bytes of UTF-8.
    pub const MAX_NAME_BYTES: usize = 4096;
    /// The most that the deltas of one message may take, by [`Sums::encoded_bytes`].
    pub const MAX_MESSAGE_DELTAS_BYTES: usize = 7 << 20;
    /// A message of more increments than this is too large, however short their names are.
    pub const MAX_MESSAGE_INCREMENTS: usize =
        Fold::MAX_MESSAGE_DELTAS_BYTES / Sums::MIN_DELTA_BYTES;
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
            cells: Vec::new(),
            repeated: Vec::new(),
            id_bytes: Vec::new(),
        }
    }

    /// Counts a message as a whole: adds every increment that is no duplicate, or adds none and
    /// returns the reason of [`check`], which the caller passes to [`Fold::reject`].
    ///
    /// # Panics
    /// If the offset was seen before: the caller's messages are out of order.
    #[inline]
    pub fn count(
        &mut self,
        envelope: &Envelope<'_>,
        increments: &[Increment<'_>],
    ) -> Result<CountedAs, Reject> {
        let has_ids = self.check(envelope, increments)?;
        if has_ids {
            return Ok(self.count_new(envelope, increments));
        }
        self.sums.add_all(increments, &self.cells);
        self.see(envelope.offset);
        self.counted += 1;
        self.increments += increments.len() as u64;
        Ok(CountedAs::New)
    }

    /// Counts those increments of a checked message that are no duplicates.
    fn count_new(&mut self, envelope: &Envelope<'_>, increments: &[Increment<'_>]) -> CountedAs {
        let repeated_batch = self.remember_ids(envelope, increments);
        let repeated = self.repeated.len();
        self.see(envelope.offset);
        if repeated_batch {
            self.duplicates.batches += 1;
            increments.iter().for_each(|increment| self.duplicates.add(increment.namespace));
        } else {
            self.duplicates.increments += repeated as u64;
            self.repeated.iter().for_each(|at| self.duplicates.add(increments[*at].namespace));
        }
        if repeated_batch || (repeated > 0 && repeated == increments.len()) {
            self.duplicate += 1;
            return CountedAs::Duplicate;
        }
        self.add_but_repeated(increments);
        self.counted += 1;
        self.increments += (increments.len() - repeated) as u64;
        CountedAs::New
    }

    fn add_but_repeated(&mut self, increments: &[Increment<'_>]) {
        if self.repeated.is_empty() {
            return self.sums.add_all(increments, &self.cells);
        }
        let mut repeated = self.repeated.iter().copied().peekable();
        let is_new = |index: &usize| repeated.next_if_eq(index).is_none();
        let (increments, cells): (Vec<_>, Vec<_>) = (0..increments.len())
            .filter(is_new)
            .map(|index| (increments[index], self.cells[index]))
            .unzip();
        self.sums.add_all(&increments, &cells);
    }

    /// Remembers the ids of a message without counting it: it was counted before this fold starts.
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
            let id = Id::of_increment(increment, self.rules.ids_within, &mut self.id_bytes);
            if id.is_some_and(|id| self.id_memory.see(id, offset)) {
                self.repeated.push(index);
            }
        }
        let batch_id = batch_id.filter(|id| is_id(id, self.rules.ids_within)).map(Id::of_batch);
        batch_id.is_some_and(|id| self.id_memory.see(id, offset))
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
