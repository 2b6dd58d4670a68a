//! The record batches that one answer brought of one partition: from bytes to committed messages.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::compression::inflate;
use super::inflated_bytes::{HeldBytes, InflatedBytes};
use super::records::{Codec, Damage, Header, Record, Records, is_abort};
use crate::buffer_pool::BufferPool;
use crate::{FetchedMessage, Unfit};

/// An aborted transaction, some of whose messages may be in the batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AbortedTransaction {
    pub(super) first_offset: i64,
    pub(super) producer_id: i64,
}

/// Where the batches of an answer end, and so what is to be asked for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchesEnd {
    pub(super) next: i64,
    pub(super) leader_epoch: i32,
    pub(super) last_batch_bytes: usize,
}

/// How much a partition's batches may be once they are decompressed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// What they will come to by all that is known.
    pub(super) expected: usize,
    /// What is decompressed at once, in bytes. Batches beyond that are decompressed one by one, as
    /// they are read.
    pub(super) at_once: usize,
}

/// Batches that were checked and decompressed, to be read message by message.
///
/// ```text
///  sent ─► open ─┬─► Sent        not compressed: read where it is
///                ├─► Inflated    into one buffer for all
///                └─► Packed      beyond the room; when its turn comes: Unpacked, or LeftOut
/// ```
pub(super) struct RecordBatches {
    /// The offset that was asked for. Messages before it come along if it is in the middle of a
    /// batch.
    from: i64,
    sent: Bytes,
    inflated: Bytes,
    /// The records of the first batch, if it is [`Body::Unpacked`].
    unpacked: Vec<u8>,
    batches: VecDeque<Batch>,
    /// What is wrong with the batch after the last one here, and the offset that it begins at.
    damage: Option<(i64, Damage)>,
    /// As long as `inflated` is here it takes up room.
    held: Option<HeldBytes>,
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
    /// In what was sent, still compressed.
    Packed(Range<usize>, Codec),
    /// Where it was, to be packed again.
    Unpacked(Range<usize>, Codec),
    /// Nowhere, because they are too many bytes. Here is the offset of the next message.
    LeftOut(i64),
}

/// A message; key and value are where they stand in [`RecordBatches::body`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MessageRanges {
    pub(super) offset: i64,
    pub(super) timestamp_ms: Option<i64>,
    pub(super) key: Option<Range<usize>>,
    pub(super) value: Option<Range<usize>>,
    /// Of its batch; -1 if the broker did not tell.
    pub(super) leader_epoch: i32,
    pub(super) unfit: Option<Unfit>,
}

/// Where the whole batches of these bytes end; `None` if there is no whole batch.
pub(super) fn end(mut records: &[u8]) -> Result<Option<BatchesEnd>, Damage> {
    let mut end = None;
    while let Some(header) = Header::parse(records)? {
        end = Some(BatchesEnd {
            next: header.next_offset(),
            leader_epoch: header.leader_epoch,
            last_batch_bytes: header.size,
        });
        records = &records[header.size..];
    }
    Ok(end)
}

impl RecordBatches {
    /// Checks and decompresses what was answered to a fetch from offset `from` on.
    pub(super) fn open(
        mut sent: Bytes,
        from: i64,
        mut aborted: Vec<AbortedTransaction>,
        buffers: &BufferPool,
        room: Room,
    ) -> RecordBatches {
        aborted.sort_unstable();
        let mut opener = BatchesOpener {
            from,
            aborted: aborted.into(),
            aborting: BTreeSet::new(),
            inflated: buffers.take(room.expected.min(room.at_once)),
            room: room.at_once,
            batches: VecDeque::new(),
        };
        let damage = opener.open_all(&sent).err();
        let BatchesOpener { inflated, batches, .. } = opener;
        // The buffer goes back to the pool if no message is in it.
        if batches.iter().all(|batch| matches!(batch.body, Body::Inflated(_))) {
            sent = Bytes::new();
        }
        let mut inflated = buffers.lend(inflated);
        if inflated.is_empty() {
            inflated = Bytes::new();
        }
        let unpacked = Vec::new();
        RecordBatches { from, sent, inflated, unpacked, batches, damage, held: None }
    }

    /// Counts what was decompressed, until these batches are dropped.
    pub(super) fn hold(&mut self, inflated: &InflatedBytes) {
        self.held = Some(inflated.hold(self.inflated.len()));
    }

    /// Bytes of the buffers that messages are in.
    pub(super) fn bytes(&self) -> usize {
        self.sent.len() + self.inflated.len()
    }

    /// Bytes of the buffer that holds what was decompressed.
    pub(super) fn inflated_bytes(&self) -> usize {
        self.inflated.len()
    }

    /// The next message. An error comes with the offset of the batch that it is about.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<MessageRanges>, (i64, Damage)> {
        while let Some(Batch { header, records, body }) = self.batches.front_mut() {
            let at = header.base_offset;
            let body = match body {
                Body::Sent(range) => &self.sent[range.clone()],
                Body::Inflated(range) => &self.inflated[range.clone()],
                Body::Unpacked(..) => &self.unpacked,
                Body::Packed(..) | Body::LeftOut(_) => {
                    match self.unpack_or_leave_out().map_err(|damage| (at, damage))? {
                        Some(left_out) => return Ok(Some(left_out)),
                        None => continue,
                    }
                }
            };
            while let Some(record) = records.next(body).map_err(|damage| (at, damage))? {
                let Record { offset_delta, timestamp_delta, key, value, unfit } = record;
                let offset = at + i64::from(offset_delta);
                if offset >= self.from {
                    let timestamp_ms = header.timestamp_ms(timestamp_delta);
                    let leader_epoch = header.leader_epoch;
                    return Ok(Some(MessageRanges {
                        offset,
                        timestamp_ms,
                        key,
                        value,
                        leader_epoch,
                        unfit,
                    }));
                }
            }
            self.pop_front();
        }
        self.damage.take().map_or(Ok(None), Err)
    }

    /// Gives up what was decompressed of the first batch by itself, where something else is read
    /// before the rest of it. It is decompressed once more then.
    pub(super) fn pack(&mut self) {
        if let Some(Batch { body, .. }) = self.batches.front_mut()
            && let Body::Unpacked(range, codec) = body
        {
            *body = Body::Packed(range.clone(), *codec);
            self.unpacked = Vec::new();
        }
    }

    #[cfg(test)]
    pub(super) fn unpacked_bytes(&self) -> usize {
        self.unpacked.capacity()
    }

    fn pop_front(&mut self) {
        self.batches.pop_front();
        if self.unpacked.capacity() > 0 {
            self.unpacked = Vec::new();
        }
    }

    /// Decompresses the first batch, which had no room at once. If it is too large even alone,
    /// returns its next message, with key and value left out; after the last one the batch is gone.
    #[cold]
    fn unpack_or_leave_out(&mut self) -> Result<Option<MessageRanges>, Damage> {
        let Some(Batch { header, body, .. }) = self.batches.front_mut() else { return Ok(None) };
        if let Body::Packed(range, codec) = body {
            let (packed, most) = (&self.sent[range.clone()], FetchedMessage::MAX_BATCH_BYTES);
            if inflate(*codec, packed, &mut self.unpacked, most)? {
                *body = Body::Unpacked(range.clone(), *codec);
                return Ok(None);
            }
            // What it came to before that was too much.
            self.unpacked = Vec::new();
            *body = Body::LeftOut(header.dense_offsets()?.start);
        }
        if let Body::LeftOut(next) = body {
            let offset = (*next).max(self.from);
            if offset < header.next_offset() {
                *next = offset + 1;
                return Ok(Some(MessageRanges {
                    offset,
                    timestamp_ms: header.timestamp_ms(0),
                    key: None,
                    value: None,
                    leader_epoch: header.leader_epoch,
                    unfit: Some(Unfit::BatchTooLarge),
                }));
            }
        }
        self.pop_front();
        Ok(None)
    }

    /// The bytes that the last message's ranges are of.
    #[inline]
    pub(super) fn body(&self) -> &[u8] {
        match self.batches.front().map(|batch| &batch.body) {
            Some(Body::Sent(range)) => &self.sent[range.clone()],
            Some(Body::Inflated(range)) => &self.inflated[range.clone()],
            Some(Body::Unpacked(..)) => &self.unpacked,
            Some(Body::Packed(..) | Body::LeftOut(_)) | None => &[],
        }
    }

    /// A part of the last message, to be kept for as long as anybody likes. A small part of a
    /// buffer is copied, so as not to hold on to all of the buffer.
    pub(super) fn share(&self, part: Range<usize>) -> Bytes {
        let (buffer, body) = match self.batches.front().map(|batch| &batch.body) {
            Some(Body::Sent(body)) => (&self.sent, body),
            Some(Body::Inflated(body)) => (&self.inflated, body),
            Some(Body::Unpacked(..)) => return Bytes::copy_from_slice(&self.unpacked[part]),
            Some(Body::Packed(..) | Body::LeftOut(_)) | None => return Bytes::new(),
        };
        let part = body.start + part.start..body.start + part.end;
        if part.len() < buffer.len() / 2 {
            Bytes::copy_from_slice(&buffer[part])
        } else {
            buffer.slice(part)
        }
    }
}

struct BatchesOpener {
    from: i64,
    /// The transactions that no batch has reached yet, ordered by their first offsets.
    aborted: VecDeque<AbortedTransaction>,
    /// The producers of aborted transactions: their transactional messages are passed over until
    /// the transaction's marker.
    aborting: BTreeSet<i64>,
    inflated: Vec<u8>,
    /// How many bytes more may be decompressed at once.
    room: usize,
    batches: VecDeque<Batch>,
}

impl BatchesOpener {
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

    /// Adds the batch if it holds committed messages.
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
        let sent = at + header.size - body.len()..at + header.size;
        let body = match header.codec()? {
            Codec::None => Body::Sent(sent),
            codec => {
                let start = self.inflated.len();
                let limit = self.room.min(FetchedMessage::MAX_BATCH_BYTES);
                let fits = limit > 0 && inflate(codec, body, &mut self.inflated, limit)?;
                if fits {
                    self.room -= self.inflated.len() - start;
                    Body::Inflated(start..self.inflated.len())
                } else {
                    // Those behind it are not tried, only to find that they do not fit either.
                    self.room = 0;
                    Body::Packed(sent, codec)
                }
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
