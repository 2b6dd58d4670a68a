//! The auditor's own reading and writing of what is in the log: the schemas of the project, but
//! another implementation of Avro than the services', which decode and encode by hand.

use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(super) const INCREMENT: &str = include_str!("../../../../schemas/avro/increment.avsc");
pub(super) const INCREMENT_BATCH: &str =
    include_str!("../../../../schemas/avro/increment_batch.avsc");
pub(super) const DELTA_BATCH: &str = include_str!("../../../../schemas/avro/delta_batch.avsc");

/// The Confluent wire format: a zero byte, the schema's id in four bytes, then the datum.
const PREFIX_BYTES: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Increment {
    pub(super) namespace: String,
    pub(super) key: String,
    pub(super) delta: i64,
    /// Milliseconds since 1970.
    pub(super) at: i64,
    pub(super) id: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IncrementBatch {
    pub(super) id: Option<String>,
    pub(super) increments: Vec<Increment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Delta {
    pub(super) namespace: String,
    pub(super) key: String,
    /// Seconds since 1970.
    pub(super) bucket: i64,
    pub(super) sum: i64,
    pub(super) events: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeltaBatch {
    pub(super) topic_id: String,
    pub(super) partition: i32,
    pub(super) from: i64,
    pub(super) to: i64,
    pub(super) counted: i64,
    pub(super) duplicate: i64,
    pub(super) rejected: i64,
    pub(super) increments: i64,
    pub(super) fingerprint: i64,
    pub(super) correction: bool,
    pub(super) deltas: Vec<Delta>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("not in the wire format")]
    NotFramed,
    #[error("schema {0} is none of those that the run was set up with")]
    UnknownSchema(u32),
    #[error("not what its schema says: {0}")]
    Avro(#[from] apache_avro::Error),
    #[error("poison, which is not decoded")]
    Poison,
    #[error("{0} bytes behind its end")]
    Trailing(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SchemaIds {
    pub(super) increment: u32,
    pub(super) batch: u32,
}

struct Codec {
    reader: GenericDatumReader<'static>,
    writer: GenericDatumWriter<'static>,
}

impl Codec {
    fn new(text: &str) -> Codec {
        let schema: &'static Schema =
            Box::leak(Box::new(Schema::parse_str(text).expect("the project's schemas parse")));
        let reader = GenericDatumReader::builder(schema).human_readable(false).build();
        let writer = GenericDatumWriter::builder(schema).human_readable(false).build();
        Codec {
            reader: reader.expect("the project's schemas resolve"),
            writer: writer.expect("the project's schemas resolve"),
        }
    }

    fn read<T: DeserializeOwned>(&self, mut body: &[u8]) -> Result<T, Error> {
        let value = self.reader.read_deser(&mut body)?;
        if body.is_empty() { Ok(value) } else { Err(Error::Trailing(body.len())) }
    }

    fn write(&self, schema_id: u32, value: &impl Serialize) -> Vec<u8> {
        let mut bytes = frame(schema_id);
        self.writer
            .write_ser(&mut bytes, value)
            .expect("the auditor's types are those of the schemas");
        bytes
    }
}

static SINGLES: LazyLock<Codec> = LazyLock::new(|| Codec::new(INCREMENT));
static BATCHES: LazyLock<Codec> = LazyLock::new(|| Codec::new(INCREMENT_BATCH));
static DELTAS: LazyLock<Codec> = LazyLock::new(|| Codec::new(DELTA_BATCH));

/// What comes before a datum.
pub(super) fn frame(schema_id: u32) -> Vec<u8> {
    [&[0][..], &schema_id.to_be_bytes()].concat()
}

/// Avro's `long`: zigzag, then seven bits a byte.
pub(super) fn write_long(bytes: &mut Vec<u8>, value: i64) {
    let mut left = (value << 1 ^ value >> 63).cast_unsigned();
    while left > 0x7f {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
}

fn unframe(payload: &[u8]) -> Result<(u32, &[u8]), Error> {
    match payload.split_first_chunk::<PREFIX_BYTES>() {
        Some(([0, id @ ..], body)) => Ok((u32::from_be_bytes(*id), body)),
        _ => Err(Error::NotFramed),
    }
}

pub(super) fn write_single(ids: SchemaIds, increment: &Increment) -> Vec<u8> {
    SINGLES.write(ids.increment, increment)
}

pub(super) fn write_batch(ids: SchemaIds, batch: &IncrementBatch) -> Vec<u8> {
    BATCHES.write(ids.batch, batch)
}

/// Reads a message of `increments`; a single increment is a batch of one.
pub(super) fn read_message(ids: SchemaIds, payload: &[u8]) -> Result<IncrementBatch, Error> {
    let (id, body) = unframe(payload)?;
    if id == ids.increment {
        Ok(IncrementBatch { id: None, increments: vec![SINGLES.read(body)?] })
    } else if id == ids.batch {
        BATCHES.read(body)
    } else {
        Err(Error::UnknownSchema(id))
    }
}

pub(super) fn read_deltas(schema_id: u32, payload: &[u8]) -> Result<DeltaBatch, Error> {
    match unframe(payload)? {
        (id, body) if id == schema_id => DELTAS.read(body),
        (id, _) => Err(Error::UnknownSchema(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: SchemaIds = SchemaIds { increment: 7, batch: 8 };

    fn increment(id: Option<&str>) -> Increment {
        let id = id.map(str::to_owned);
        Increment {
            namespace: "n".into(),
            key: "ключ".into(),
            delta: -(1 << 40),
            at: 1_780_000_000_000,
            id,
        }
    }

    #[test]
    fn messages_read_as_they_were_written() {
        let single = increment(Some("once"));
        let read = read_message(IDS, &write_single(IDS, &single)).unwrap();
        assert_eq!(read, IncrementBatch { id: None, increments: vec![single.clone()] });
        let batch =
            IncrementBatch { id: Some("b".into()), increments: vec![single, increment(None)] };
        assert_eq!(read_message(IDS, &write_batch(IDS, &batch)).unwrap(), batch);
    }

    #[test]
    fn deltas_read_as_they_were_written() {
        let delta =
            Delta { namespace: "n".into(), key: "k".into(), bucket: 60, sum: -5, events: 2 };
        let batch = DeltaBatch {
            topic_id: "t".into(),
            partition: 3,
            from: 1,
            to: 9,
            counted: 6,
            duplicate: 1,
            rejected: 1,
            increments: 2,
            fingerprint: -1,
            correction: false,
            deltas: vec![delta],
        };
        assert_eq!(read_deltas(9, &DELTAS.write(9, &batch)).unwrap(), batch);
        assert!(matches!(read_deltas(10, &DELTAS.write(9, &batch)), Err(Error::UnknownSchema(9))));
    }

    #[test]
    fn bytes_too_many_or_too_few_are_an_error() {
        let whole = write_single(IDS, &increment(None));
        assert!(matches!(read_message(IDS, &[&whole[..], b"x"].concat()), Err(Error::Trailing(1))));
        assert!(matches!(read_message(IDS, &whole[..whole.len() - 3]), Err(Error::Avro(_))));
        assert!(matches!(read_message(IDS, &whole[..4]), Err(Error::NotFramed)));
        assert!(matches!(read_message(IDS, b"{\"a\": 1}"), Err(Error::NotFramed)));
    }
}
