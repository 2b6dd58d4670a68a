//! What one answer brought of one partition: from bytes to messages that were committed.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::compression::inflate;
use super::records::{Codec, Damage, Header, Record, Records, is_abort};

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
}

pub(super) struct Chunk {
    rest: Bytes,
    /// Messages before this offset are of a batch that was asked for from its middle.
    from: i64,
    /// Ordered by their first offsets: those that no batch has reached yet.
    aborted: VecDeque<Aborted>,
    /// Producers whose messages, where they are transactional, are to be passed over until their marker.
    aborting: BTreeSet<i64>,
    batch: Option<Batch>,
}

struct Batch {
    header: Header,
    records: Records,
    /// The records as they were sent; `None` if they are decompressed elsewhere.
    sent: Option<Bytes>,
}

/// A message; key and value are where they stand in [`Chunk::body`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) offset: i64,
    pub(super) timestamp_ms: Option<i64>,
    pub(super) key: Option<Range<usize>>,
    pub(super) value: Option<Range<usize>>,
}

impl Chunk {
    /// What was answered to a question for `from` and after.
    pub(super) fn new(records: Bytes, from: i64, mut aborted: Vec<Aborted>) -> Chunk {
        aborted.sort_unstable();
        Chunk { rest: records, from, aborted: aborted.into(), aborting: BTreeSet::new(), batch: None }
    }

    /// Where the whole batches of these bytes end; `None` if there is not one.
    pub(super) fn end(mut records: &[u8]) -> Result<Option<End>, Damage> {
        let mut end = None;
        while let Some(header) = Header::parse(records)? {
            end = Some(End { next: header.next_offset(), leader_epoch: header.leader_epoch });
            records = &records[header.size..];
        }
        Ok(end)
    }

    /// The next message. `inflated` holds the decompressed records between the calls.
    #[inline]
    pub(super) fn next(&mut self, inflated: &mut Vec<u8>) -> Result<Option<Message>, Damage> {
        loop {
            if let Some(Batch { header, records, sent }) = &mut self.batch {
                let body = sent.as_deref().unwrap_or(inflated);
                while let Some(Record { offset_delta, timestamp_delta, key, value }) = records.next(body)? {
                    let offset = header.base_offset + i64::from(offset_delta);
                    if offset >= self.from {
                        let timestamp_ms = header.timestamp_ms(timestamp_delta);
                        return Ok(Some(Message { offset, timestamp_ms, key, value }));
                    }
                }
                self.batch = None;
            }
            if !self.open_next(inflated)? {
                return Ok(None);
            }
        }
    }

    /// What the ranges of the last message are of.
    #[inline]
    pub(super) fn body<'b>(&'b self, inflated: &'b [u8]) -> &'b [u8] {
        match &self.batch {
            Some(Batch { sent: Some(sent), .. }) => sent,
            _ => inflated,
        }
    }

    /// The offset of the batch that is read, for whom it concerns that it is damaged.
    pub(super) fn at(&self) -> Option<i64> {
        match &self.batch {
            Some(batch) => Some(batch.header.base_offset),
            None => self.rest.first_chunk().map(|offset| i64::from_be_bytes(*offset)),
        }
    }

    /// Passes over batches without committed messages; `false` at the end.
    fn open_next(&mut self, inflated: &mut Vec<u8>) -> Result<bool, Damage> {
        while let Some(header) = Header::parse(&self.rest)? {
            // A damaged batch stays where it is, to be named.
            let body = header.checked_body(&self.rest)?;
            let next = header.next_offset();
            while let Some(aborted) = self.aborted.pop_front_if(|aborted| aborted.first_offset < next) {
                self.aborting.insert(aborted.producer_id);
            }
            let is_wanted = if header.is_control() {
                if ends_abort(&header, body)? {
                    self.aborting.remove(&header.producer_id);
                }
                false
            } else {
                next > self.from
                    && !(header.is_transactional() && self.aborting.contains(&header.producer_id))
            };
            if !is_wanted {
                self.rest = self.rest.slice(header.size..);
                continue;
            }
            let sent = match header.codec()? {
                Codec::None => Some(self.rest.slice_ref(body)),
                codec => {
                    inflate(codec, body, inflated)?;
                    None
                }
            };
            self.batch = Some(Batch { header, records: Records::of(&header), sent });
            self.rest = self.rest.slice(header.size..);
            return Ok(true);
        }
        Ok(false)
    }
}

fn ends_abort(header: &Header, body: &[u8]) -> Result<bool, Damage> {
    let marker = Records::of(header).next(body)?;
    Ok(marker.and_then(|marker| marker.key).is_some_and(|key| is_abort(&body[key])))
}
