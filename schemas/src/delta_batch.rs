//! `tally.DeltaBatch`, as the aggregator writes it and the sink, the reader and the reconciler read
//! it.
//!
//! ```text
//!  header + Delta… ──► encode ──► body ──► DeltaBatch::decode ──► header + Deltas, an iterator
//!                                                                 over the body
//! ```
//!
//! Both by our schema, [`crate::avsc::DELTA_BATCH`]. A batch by the schema of another version of
//! Tally is made one by ours first ([`DeltaBatchPlan`]).

mod plan;

use std::iter::FusedIterator;

pub use self::plan::DeltaBatchPlan;
use crate::cursor::Cursor;
use crate::encode::text;
use crate::{DecodeError, Reason, varint};

/// What one flush of one source partition came to, without its deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaBatchHeader<'a> {
    /// Kafka's id of the source topic.
    pub topic_id: &'a str,
    pub partition: i32,
    /// The first source offset, and the next one to read.
    pub from: i64,
    pub to: i64,
    /// Messages in [from, to) counted, recognised as duplicates, and rejected.
    pub counted: u64,
    pub duplicate: u64,
    pub rejected: u64,
    /// Increments in the counted messages.
    pub increments: u64,
    pub fingerprint: u64,
    pub correction: bool,
}

/// What one counter gained in one time bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta<'a> {
    pub namespace: &'a str,
    pub key: &'a str,
    /// The start of the bucket, in seconds since the Unix epoch.
    pub bucket_s: u32,
    pub sum: i64,
    pub events: i64,
}

/// Appends the body of a batch to `out`.
///
/// # Panics
/// If a count in the header does not fit Avro's signed `long`, or if `deltas` yields another number
/// than it said.
pub fn encode<'a>(
    out: &mut Vec<u8>,
    header: &DeltaBatchHeader<'_>,
    deltas: impl ExactSizeIterator<Item = Delta<'a>>,
) {
    text(out, header.topic_id);
    varint::write(out, i64::from(header.partition));
    varint::write(out, header.from);
    varint::write(out, header.to);
    for count in [header.counted, header.duplicate, header.rejected, header.increments] {
        varint::write(out, i64::try_from(count).expect("a count fits Avro's long"));
    }
    varint::write(out, header.fingerprint.cast_signed());
    out.push(u8::from(header.correction));

    let announced = deltas.len();
    if announced > 0 {
        varint::write(out, announced as i64);
        let mut written = 0;
        for delta in deltas {
            delta.write(out);
            written += 1;
        }
        assert_eq!(written, announced, "an iterator yields as many deltas as it said");
    }
    varint::write(out, 0);
}

impl Delta<'_> {
    /// The fewest bytes of a delta: five fields of one byte each, the strings empty.
    const MIN_BYTES: u64 = 5;

    /// What the delta takes in a batch's body, in bytes.
    pub fn encoded_bytes(&self) -> usize {
        let text = |text: &str| varint::len(text.len() as i64) + text.len();
        text(self.namespace)
            + text(self.key)
            + varint::len(i64::from(self.bucket_s))
            + varint::len(self.sum)
            + varint::len(self.events)
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        text(out, self.namespace);
        text(out, self.key);
        varint::write(out, i64::from(self.bucket_s));
        varint::write(out, self.sum);
        varint::write(out, self.events);
    }
}

/// A batch read from a message's body, which it borrows.
#[derive(Clone)]
pub struct DeltaBatch<'a> {
    pub header: DeltaBatchHeader<'a>,
    pub deltas: Deltas<'a>,
}

impl<'a> DeltaBatch<'a> {
    /// Reads the header. The deltas are read as they are iterated, so only the iterator's end
    /// without an error says that the batch is sound.
    pub fn decode(body: &'a [u8]) -> Result<DeltaBatch<'a>, DecodeError> {
        let mut cursor = Cursor::new(body);
        let header = DeltaBatchHeader {
            topic_id: field(&mut cursor, "topic_id", Cursor::text)?,
            partition: field(&mut cursor, "partition", Cursor::int)?,
            from: field(&mut cursor, "from", Cursor::long)?,
            to: field(&mut cursor, "to", Cursor::long)?,
            counted: field(&mut cursor, "counted", count)?,
            duplicate: field(&mut cursor, "duplicate", count)?,
            rejected: field(&mut cursor, "rejected", count)?,
            increments: field(&mut cursor, "increments", count)?,
            fingerprint: field(&mut cursor, "fingerprint", Cursor::long)?.cast_unsigned(),
            correction: field(&mut cursor, "correction", Cursor::boolean)?,
        };
        let mut deltas = Deltas { cursor, item: 0, block: State::Between };
        deltas.open_block()?;
        Ok(DeltaBatch { header, deltas })
    }
}

fn field<'a, T>(
    cursor: &mut Cursor<'a>,
    name: &str,
    read: impl FnOnce(&mut Cursor<'a>) -> Result<T, Reason>,
) -> Result<T, DecodeError> {
    read(cursor).map_err(|reason| cursor.error(name.to_owned(), reason))
}

fn checked<T: TryFrom<i64>>(cursor: &mut Cursor<'_>) -> Result<T, Reason> {
    let mut ahead = *cursor;
    let value = ahead.long()?;
    let value = T::try_from(value).map_err(|_| Reason::Range(value))?;
    *cursor = ahead;
    Ok(value)
}

fn count(cursor: &mut Cursor<'_>) -> Result<u64, Reason> {
    checked(cursor)
}

/// The deltas of a batch, in the order in which they were written. It ends after the first error.
#[derive(Clone)]
pub struct Deltas<'a> {
    cursor: Cursor<'a>,
    item: u64,
    block: State,
}

#[derive(Clone, Copy)]
enum State {
    Between,
    /// Within a block: the items left of it (more than none), and where it must end.
    Inside {
        left: u64,
        end: Option<usize>,
    },
    Done,
}

impl<'a> Deltas<'a> {
    /// How many deltas the block that is being read still announces. The bytes ahead can hold them,
    /// so it is safe to reserve by; as Tally writes one block a batch, it is the batch's number of
    /// deltas until one is taken.
    pub fn announced(&self) -> usize {
        match self.block {
            State::Inside { left, .. } => left as usize,
            State::Between | State::Done => 0,
        }
    }

    fn open_block(&mut self) -> Result<(), DecodeError> {
        let opened = self.cursor.block(Delta::MIN_BYTES);
        self.block =
            match opened.map_err(|reason| self.cursor.error("deltas".to_owned(), reason))? {
                Some(block) => State::Inside { left: block.items, end: block.end },
                None => {
                    self.cursor
                        .end()
                        .map_err(|reason| self.cursor.error("DeltaBatch".to_owned(), reason))?;
                    State::Done
                }
            };
        Ok(())
    }

    #[inline(always)]
    fn read(&mut self) -> Result<Delta<'a>, (&'static str, Reason)> {
        let cursor = &mut self.cursor;
        Ok(Delta {
            namespace: cursor.text().map_err(|reason| ("namespace", reason))?,
            key: cursor.text().map_err(|reason| ("key", reason))?,
            bucket_s: checked(cursor).map_err(|reason| ("bucket", reason))?,
            sum: cursor.long().map_err(|reason| ("sum", reason))?,
            events: cursor.long().map_err(|reason| ("events", reason))?,
        })
    }

    #[inline]
    fn advance(&mut self) -> Result<Option<Delta<'a>>, DecodeError> {
        if let State::Between = self.block {
            self.open_block()?;
        }
        let State::Inside { left, end } = self.block else { return Ok(None) };
        let delta = self.read().map_err(|(field, reason)| {
            self.cursor.error(format!("deltas[{}].{field}", self.item), reason)
        })?;
        self.item += 1;
        self.block = if left > 1 {
            State::Inside { left: left - 1, end }
        } else {
            self.cursor
                .end_block(end)
                .map_err(|reason| self.cursor.error("deltas".to_owned(), reason))?;
            State::Between
        };
        Ok(Some(delta))
    }
}

impl<'a> Iterator for Deltas<'a> {
    type Item = Result<Delta<'a>, DecodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let advanced = self.advance().transpose();
        if let Some(Err(_)) = advanced {
            self.block = State::Done;
        }
        advanced
    }
}

impl FusedIterator for Deltas<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: DeltaBatchHeader<'static> = DeltaBatchHeader {
        topic_id: "t",
        partition: 3,
        from: 10,
        to: 13,
        counted: 2,
        duplicate: 0,
        rejected: 1,
        increments: 2,
        fingerprint: u64::MAX,
        correction: false,
    };
    const DELTA: Delta<'static> =
        Delta { namespace: "n", key: "k", bucket_s: 60, sum: -1, events: 1 };

    fn body(deltas: &[Delta<'_>]) -> Vec<u8> {
        let mut body = Vec::new();
        encode(&mut body, &HEADER, deltas.iter().copied());
        body
    }

    #[test]
    fn deltas_end_after_the_first_error() {
        let mut body = body(&[DELTA; 3]);
        let bucket = body.len() - b"\x78\x01\x02\x00".len();
        assert_eq!(body[bucket..], *b"\x78\x01\x02\x00", "bucket, sum, events, no more blocks");
        body[bucket] = 1;
        let mut deltas = DeltaBatch::decode(&body).unwrap().deltas;
        assert_eq!(deltas.next(), Some(Ok(DELTA)));
        assert_eq!(deltas.next(), Some(Ok(DELTA)));
        let error = deltas.next().unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("`deltas[2].bucket` at byte {bucket}: -1 is out of range")
        );
        assert_eq!(deltas.next(), None);
    }

    #[test]
    fn a_header_out_of_range_is_refused() {
        let mut body = body(&[]);
        assert_eq!(body[..6], *b"\x02t\x06\x14\x1a\x04", "topic, partition, from, to, counted");
        body[5] = 3;
        let error = DeltaBatch::decode(&body).err().expect("no batch");
        assert_eq!(error.to_string(), "`counted` at byte 5: -2 is out of range");
        body[5] = 4;
        let correction = body.len() - 2;
        body[correction] = 2;
        let error = DeltaBatch::decode(&body).err().expect("no batch");
        assert_eq!(
            error.to_string(),
            format!("`correction` at byte {correction}: 0x02 is not a boolean")
        );
    }

    #[test]
    #[should_panic(expected = "as many deltas as it said")]
    fn an_iterator_that_lies_about_its_length_is_not_written() {
        struct Lies;
        impl Iterator for Lies {
            type Item = Delta<'static>;

            fn next(&mut self) -> Option<Delta<'static>> {
                None
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                (2, Some(2))
            }
        }
        impl ExactSizeIterator for Lies {}
        encode(&mut Vec::new(), &HEADER, Lies);
    }
}
