//! Record batches as brokers store and send them: Kafka's message format 2.
//!
//! ```text
//!  baseOffset i64 │ length i32 │ leaderEpoch i32 │ magic i8 │ crc u32 │ attributes i16 │
//!  lastOffsetDelta i32 │ baseTimestamp i64 │ maxTimestamp i64 │ producerId i64 │
//!  producerEpoch i16 │ baseSequence i32 │ count i32 │ records, as a whole compressed
//!
//!  record: length varint │ attributes i8 │ timestampDelta varlong │ offsetDelta varint │
//!          key │ value │ headers
//! ```
//!
//! Nothing here allocates, and nothing here trusts a byte: a length that leads out of its batch is
//! a [`Damage`].

use std::ops::Range;

use crate::{FetchedMessage, Unfit};

const SCHEMA_HEADER_BYTES: usize = FetchedMessage::SCHEMA_HEADER_BYTES;

/// The bytes that the length does not count: the base offset and the length itself.
const PREFIX: usize = 12;
/// The bytes up to the first record.
const HEADER: usize = 61;
/// Where the checksum's bytes begin; it covers everything from the attributes on.
const CHECKED: usize = 21;

const CODEC: i16 = 0b111;
const APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// Why bytes are no record batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("the batch says that it is {0} bytes long")]
    Length(i32),
    #[error(
        "message format {0}, which brokers have not written since Kafka 0.11: only format 2 is read"
    )]
    Format(i8),
    #[error("the batch's checksum is {found:08x}, and its bytes have {computed:08x}")]
    Checksum { found: u32, computed: u32 },
    #[error("record {index} of {count} leads out of its batch")]
    Record { index: i32, count: i32 },
    #[error("compression {0}, which is none that Kafka has")]
    Codec(i16),
    #[error("its records cannot be decompressed: {0}")]
    Compressed(String),
    #[error(
        "its records are too many bytes to be decompressed, and {0} of their offsets are not there"
    )]
    Sparse(i64),
}

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// What a batch says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) base_offset: i64,
    /// The whole batch's length, in bytes.
    pub(super) size: usize,
    pub(super) leader_epoch: i32,
    attributes: i16,
    last_offset_delta: i32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    pub(super) producer_id: i64,
    pub(super) count: i32,
}

impl Header {
    /// The header of the batch that `bytes` begins with; `None` where they end before the batch
    /// does, as an answer to a fetch may.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header>, Damage> {
        let Some((prefix, rest)) = bytes.split_at_checked(PREFIX) else { return Ok(None) };
        let length = i32::from_be_bytes(field(prefix, 8));
        let size = usize::try_from(length).map_err(|_| Damage::Length(length))? + PREFIX;
        if rest.len() + PREFIX < size {
            return Ok(None);
        }
        // Older formats have the format's number, magic, at the same place.
        if size <= 16 {
            return Err(Damage::Length(length));
        }
        let magic = i8::from_be_bytes(field(bytes, 16));
        if magic != 2 {
            return Err(Damage::Format(magic));
        }
        if size < HEADER {
            return Err(Damage::Length(length));
        }
        Ok(Some(Header {
            base_offset: i64::from_be_bytes(field(bytes, 0)),
            size,
            leader_epoch: i32::from_be_bytes(field(bytes, 12)),
            attributes: i16::from_be_bytes(field(bytes, 21)),
            last_offset_delta: i32::from_be_bytes(field(bytes, 23)),
            base_timestamp_ms: i64::from_be_bytes(field(bytes, 27)),
            max_timestamp_ms: i64::from_be_bytes(field(bytes, 35)),
            producer_id: i64::from_be_bytes(field(bytes, 43)),
            count: i32::from_be_bytes(field(bytes, 57)),
        }))
    }

    /// The records of `batch`, which this is the header of, once its checksum is found right.
    pub(super) fn checked_body<'b>(&self, batch: &'b [u8]) -> Result<&'b [u8], Damage> {
        let found = u32::from_be_bytes(field(batch, 17));
        let computed = crc32c::crc32c(&batch[CHECKED..self.size]);
        if found != computed {
            return Err(Damage::Checksum { found, computed });
        }
        Ok(&batch[HEADER..self.size])
    }

    /// The first offset after the batch, whether its last record is still there or compaction took
    /// it.
    pub(super) fn next_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta) + 1
    }

    /// The offsets of its records, if there is a record for each: else only the records tell.
    pub(super) fn dense_offsets(&self) -> Result<Range<i64>, Damage> {
        let offsets = self.base_offset..self.next_offset();
        let missing = offsets.end - offsets.start - i64::from(self.count);
        if missing == 0 { Ok(offsets) } else { Err(Damage::Sparse(missing)) }
    }

    pub(super) fn codec(&self) -> Result<Codec, Damage> {
        match self.attributes & CODEC {
            0 => Ok(Codec::None),
            1 => Ok(Codec::Gzip),
            2 => Ok(Codec::Snappy),
            3 => Ok(Codec::Lz4),
            4 => Ok(Codec::Zstd),
            other => Err(Damage::Codec(other)),
        }
    }

    pub(super) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether it holds a transaction's marker and no messages.
    pub(super) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// A record's time: the broker's if the topic says so (`message.timestamp.type`), else the
    /// producer's; `None` if the producer gave none.
    pub(super) fn timestamp_ms(&self, delta: i64) -> Option<i64> {
        let timestamp_ms = match self.attributes & APPEND_TIME {
            0 => self.base_timestamp_ms.wrapping_add(delta),
            _ => self.max_timestamp_ms,
        };
        (timestamp_ms >= 0).then_some(timestamp_ms)
    }
}

/// One record; key and value are ranges of the decompressed records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) offset_delta: i32,
    pub(super) timestamp_delta: i64,
    pub(super) key: Option<Range<usize>>,
    pub(super) value: Option<Range<usize>>,
    /// [`Unfit::SchemaInHeader`], or nothing.
    pub(super) unfit: Option<Unfit>,
}

/// Walks the records of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Records {
    at: usize,
    index: i32,
    count: i32,
}

impl Records {
    pub(super) fn of(header: &Header) -> Records {
        Records { at: 0, index: 0, count: header.count }
    }

    /// The next record of `body`, which are the decompressed records.
    #[inline]
    pub(super) fn next(&mut self, body: &[u8]) -> Result<Option<Record>, Damage> {
        if self.index >= self.count {
            return Ok(None);
        }
        match self.read(body) {
            Some((record, end)) => {
                self.at = end;
                self.index += 1;
                Ok(Some(record))
            }
            None => Err(Damage::Record { index: self.index, count: self.count }),
        }
    }

    #[inline]
    fn read(&self, body: &[u8]) -> Option<(Record, usize)> {
        let mut at = self.at;
        let length = usize::try_from(varint(body, &mut at)?).ok()?;
        let end = at.checked_add(length).filter(|end| *end <= body.len())?;
        let record = &body[..end];
        // The record's attributes, which Kafka does not use yet.
        at += 1;
        let timestamp_delta = varint(record, &mut at)?;
        let offset_delta = i32::try_from(varint(record, &mut at)?).ok()?;
        let key = part(record, &mut at)?;
        let value = part(record, &mut at)?;
        // Most messages have no headers, or none that are as long.
        let unfit =
            if end - at > SCHEMA_HEADER_BYTES { schema_header(&record[at..]) } else { None };
        Some((Record { offset_delta, timestamp_delta, key, value, unfit }, end))
    }
}

/// Whether a header among these names the schema of the value.
#[cold]
fn schema_header(headers: &[u8]) -> Option<Unfit> {
    let mut at = 0;
    for _ in 0..varint(headers, &mut at)? {
        let name = part(headers, &mut at)??;
        let value = part(headers, &mut at)?;
        if headers[name] == *FetchedMessage::SCHEMA_HEADER.as_bytes()
            && value.is_some_and(|value| value.len() == SCHEMA_HEADER_BYTES)
        {
            return Some(Unfit::SchemaInHeader);
        }
    }
    None
}

/// Whether a control record says that its transaction was aborted.
pub(super) fn is_abort(key: &[u8]) -> bool {
    // Version, type: 0 is an abort, 1 a commit; others are not about transactions.
    key.get(2..4) == Some(&[0, 0])
}

/// A length and so many bytes; a length of -1 is null.
#[inline]
fn part(record: &[u8], at: &mut usize) -> Option<Option<Range<usize>>> {
    let length = varint(record, at)?;
    if length < 0 {
        return (length == -1).then_some(None);
    }
    let end = at.checked_add(usize::try_from(length).ok()?).filter(|end| *end <= record.len())?;
    let range = *at..end;
    *at = end;
    Some(Some(range))
}

/// Protocol buffers' zigzag variable-length integer, of up to 64 bits.
#[inline]
fn varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let first = *bytes.get(*at)?;
    *at += 1;
    let mut raw = u64::from(first & 0x7f);
    if first >= 0x80 {
        let mut shift = 7;
        loop {
            let byte = *bytes.get(*at)?;
            *at += 1;
            raw |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
            shift += 7;
            if shift > 63 {
                return None;
            }
        }
    }
    Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}
