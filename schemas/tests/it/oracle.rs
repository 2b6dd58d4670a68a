//! The same messages through apache-avro.

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{Error, Schema};

use crate::evolved::Owned;

/// Writes by a schema.
pub(crate) fn write(schema: &str, value: Value) -> Vec<u8> {
    let schema = Schema::parse_str(schema).unwrap();
    GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(value).unwrap()
}

/// Reads a body that takes all its bytes by the schema that it was written by, resolved to
/// `reader`'s.
pub(crate) fn read(writer: &str, reader: &str, body: &[u8]) -> Result<Value, Error> {
    let writer = Schema::parse_str(writer).unwrap();
    let reader = Schema::parse_str(reader).unwrap();
    let mut rest = body;
    let value = GenericDatumReader::builder(&writer)
        .reader_schema(&reader)
        .build()
        .unwrap()
        .read_value(&mut rest)?;
    assert_eq!(rest, b"", "bytes left over");
    Ok(value)
}

pub(crate) fn fields<const N: usize>(value: Value) -> [Value; N] {
    let Value::Record(fields) = value else { panic!("a record, not {value:?}") };
    fields.into_iter().map(|(_, value)| value).collect::<Vec<_>>().try_into().unwrap()
}

pub(crate) fn long(value: Value) -> i64 {
    match value {
        Value::Long(long) | Value::TimestampMillis(long) => long,
        other => panic!("a long, not {other:?}"),
    }
}

pub(crate) fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => panic!("a string, not {other:?}"),
    }
}

pub(crate) fn optional_text(value: Value) -> Option<String> {
    match value {
        Value::Union(0, null) if *null == Value::Null => None,
        Value::Union(1, given) => Some(text(*given)),
        other => panic!("null or a string, not {other:?}"),
    }
}

/// A `tally.Increment` as apache-avro has it.
pub(crate) fn increment(value: Value) -> Owned {
    let [namespace, key, delta, at, id] = fields(value);
    Owned {
        namespace: text(namespace),
        key: text(key),
        delta: long(delta),
        at_ms: long(at),
        id: optional_text(id),
    }
}

/// A `tally.IncrementBatch` as apache-avro has it.
pub(crate) fn batch(value: Value) -> (Option<String>, Vec<Owned>) {
    let [id, increments] = fields(value);
    let Value::Array(increments) = increments else { panic!("an array, not {increments:?}") };
    (optional_text(id), increments.into_iter().map(increment).collect())
}
