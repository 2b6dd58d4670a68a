//! What one answer brought of one partition: from bytes to messages that were committed.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::compression::inflate;
use super::records::{Codec, Damage, Header, Record, Records, is_abort};
use crate::buffer_pool::BufferPool;

/// A transaction that was aborted, some of whose messages may be in the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Aborted {
    pub(super) first_offset: i64,
    pub(super) producer_id: i64,
}

/// Where a chunk ends: what is to be asked for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) next: i64,
    pub(super) leader_epoch: i32,
    /// The last batch's length, in bytes.
    pub(super) size: usize,
}

/// Batches that were looked through and decompressed, to be read message by message.
pub(super) struct Chunk {
    /// Messages before this offset are of a batch that was asked for from its middle.
    from: i64,
    sent: Bytes,
    inflated: Bytes,
    batches: VecDeque<Batch>,
    /// After the last batch: what is wrong with the next one, and the offset that it begins at.
    damage: Option<(i64, Damage)>,
}

struct Batch {
    header: Header,
    records: Records,
    body: Body,
}

/// Where a batch's records are.
enum Body {
    Sent(Range<usize>),
    Inflated(Range<usize>),
}

/// A message; key and value are where they stand in [`Chunk::body`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) offset: i64,
    pub(super) timestamp_ms: Option<i64>,
    pub(super) key: Option<Range<usize>>,
    pub(super) value: Option<Range<usize>>,
}

/// Where the whole batches of these bytes end; `None` if there is not one.
pub(super) fn end(mut records: &[u8]) -> Result<Option<End>, Damage> {
    let mut end = None;
    while let Some(header) = Header::parse(records)? {
        end = Some(End {
            next: header.next_offset(),
            leader_epoch: header.leader_epoch,
            size: header.size,
        });
        records = &records[header.size..];
    }
    Ok(end)
}

impl Chunk {
    /// What was answered to a question for `from` and after; it comes to about `room` bytes once it
    /// is decompressed.
    pub(super) fn open(
        mut sent: Bytes,
        from: i64,
        mut aborted: Vec<Aborted>,
        memory: &BufferPool,
        room: usize,
    ) -> Chunk {
        aborted.sort_unstable();
        let mut opening = Opening {
            from,
            aborted: aborted.into(),
            aborting: BTreeSet::new(),
            inflated: memory.take(room),
            batches: VecDeque::new(),
        };
        let damage = opening.open_all(&sent).err();
        let Opening { inflated, batches, .. } = opening;
        // What no message is in is not held on to.
        if batches.iter().all(|batch| matches!(batch.body, Body::Inflated(_))) {
            sent = Bytes::new();
        }
        let mut inflated = memory.lend(inflated);
        if inflated.is_empty() {
            inflated = Bytes::new();
        }
        Chunk { from, sent, inflated, batches, damage }
    }

    /// Bytes that messages are in.
    pub(super) fn bytes(&self) -> usize {
        self.sent.len() + self.inflated.len()
    }

    /// Bytes of memory in what was decompressed.
    pub(super) fn inflated_bytes(&self) -> usize {
        self.inflated.len()
    }

    /// The next message; an error names the offset of the batch that it is about.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Message>, (i64, Damage)> {
        while let Some(Batch { header, records, body }) = self.batches.front_mut() {
            let body = match body {
                Body::Sent(range) => &self.sent[range.clone()],
                Body::Inflated(range) => &self.inflated[range.clone()],
            };
            let at = header.base_offset;
            while let Some(record) = records.next(body).map_err(|damage| (at, damage))? {
                let Record { offset_delta, timestamp_delta, key, value } = record;
                let offset = at + i64::from(offset_delta);
                if offset >= self.from {
                    let timestamp_ms = header.timestamp_ms(timestamp_delta);
                    return Ok(Some(Message { offset, timestamp_ms, key, value }));
                }
            }
            self.batches.pop_front();
        }
        self.damage.take().map_or(Ok(None), Err)
    }

    /// What the ranges of the last message are of.
    #[inline]
    pub(super) fn body(&self) -> &[u8] {
        match self.batches.front().map(|batch| &batch.body) {
            Some(Body::Sent(range)) => &self.sent[range.clone()],
            Some(Body::Inflated(range)) => &self.inflated[range.clone()],
            None => &[],
        }
    }

    /// A part of the last message, to be kept for as long as anybody likes. What is a small part of
    /// the memory that it stands in is copied, so as not to hold on to all of it.
    pub(super) fn share(&self, part: Range<usize>) -> Bytes {
        let (memory, body) = match self.batches.front().map(|batch| &batch.body) {
            Some(Body::Sent(body)) => (&self.sent, body),
            Some(Body::Inflated(body)) => (&self.inflated, body),
            None => return Bytes::new(),
        };
        let part = body.start + part.start..body.start + part.end;
        match part.len() < memory.len() / 2 {
            true => Bytes::copy_from_slice(&memory[part]),
            false => memory.slice(part),
        }
    }
}

struct Opening {
    from: i64,
    /// Ordered by their first offsets: those that no batch has reached yet.
    aborted: VecDeque<Aborted>,
    /// Producers whose messages, where they are transactional, are passed over until their marker.
    aborting: BTreeSet<i64>,
    inflated: Vec<u8>,
    batches: VecDeque<Batch>,
}

impl Opening {
    fn open_all(&mut self, sent: &[u8]) -> Result<(), (i64, Damage)> {
        let mut at = 0;
        loop {
            let batch = &sent[at..];
            let offset = batch.first_chunk().map_or(-1, |offset| i64::from_be_bytes(*offset));
            let Some(header) = Header::parse(batch).map_err(|damage| (offset, damage))? else {
                return Ok(());
            };
            self.open_one(header, batch, at).map_err(|damage| (offset, damage))?;
            at += header.size;
        }
    }

    /// Takes the batch up if it holds committed messages.
    fn open_one(&mut self, header: Header, batch: &[u8], at: usize) -> Result<(), Damage> {
        let body = header.checked_body(batch)?;
        let next = header.next_offset();
        while let Some(aborted) = self.aborted.pop_front_if(|aborted| aborted.first_offset < next) {
            self.aborting.insert(aborted.producer_id);
        }
        if header.is_control() {
            if ends_abort(&header, body)? {
                self.aborting.remove(&header.producer_id);
            }
            return Ok(());
        }
        let is_aborted = header.is_transactional() && self.aborting.contains(&header.producer_id);
        if is_aborted || next <= self.from {
            return Ok(());
        }
        let body = match header.codec()? {
            Codec::None => Body::Sent(at + header.size - body.len()..at + header.size),
            codec => {
                let start = self.inflated.len();
                inflate(codec, body, &mut self.inflated)?;
                Body::Inflated(start..self.inflated.len())
            }
        };
        self.batches.push_back(Batch { header, records: Records::of(&header), body });
        Ok(())
    }
}

fn ends_abort(header: &Header, body: &[u8]) -> Result<bool, Damage> {
    let marker = Records::of(header).next(body)?;
    Ok(marker.and_then(|marker| marker.key).is_some_and(|key| is_abort(&body[key])))
}
