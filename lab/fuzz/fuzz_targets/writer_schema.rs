//! Any text as a writer's schema and any bytes as its message, against apache-avro.
//!
//! ```text
//!  schema, 0, body ─► Plan ─► increments or an error
//!               └──► apache-avro ─► written again ─┬─► Plan ─► increments ────────────┬─► the same
//!                                                  └─► resolved to our own schema ────┘
//! ```

#![no_main]

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use libfuzzer_sys::fuzz_target;
use tally_schemas::{DecodeError, Increment, Message, MessageType, Plan, Reason, avsc};

/// What apache-avro may allocate for one value: it reserves by counts that it has not checked
/// against the bytes.
const MAX_ALLOCATION_BYTES: usize = 1 << 16;

fuzz_target!(
    init: {
        apache_avro::util::max_allocation_bytes(MAX_ALLOCATION_BYTES);
    },
    |bytes: &[u8]| {
        // JSON holds no byte 0, so the first one ends it; without one the message is empty.
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let (schema, rest) = bytes.split_at(end);
        let body = rest.get(1..).unwrap_or_default();
        let Ok(schema) = str::from_utf8(schema) else { return };
        let Ok(plan) = Plan::new(schema) else { return };

        let _ = ours(&plan, body);
        let Some((body, theirs)) = theirs(schema, plan.message_type(), body) else { return };
        match ours(&plan, &body) {
            Ok(ours) => assert_eq!(ours, theirs),
            // We refuse deep nesting, and types in a union that the rules do not promote.
            Err(DecodeError { reason: Reason::Depth(_) | Reason::Branch(_), .. }) => {}
            Err(error) => panic!("{error}, but apache-avro reads {theirs:?}"),
        }
    }
);

fn ours(plan: &Plan, body: &[u8]) -> Result<Value, DecodeError> {
    let mut increments = Vec::new();
    match plan.decode_into(body, &mut increments) {
        Ok(message) => {
            assert_eq!(message.increments, increments.len() as u64);
            Ok(value(plan.message_type(), message, &increments))
        }
        Err(error) => {
            assert!(increments.is_empty() && error.position <= body.len(), "{error}");
            Err(error)
        }
    }
}

/// The message as apache-avro writes it after it read it, and what it is by our own schema. Not the
/// message as it came: in fields that are not ours we jump over blocks by their sizes, which
/// apache-avro does not look at, so that a message with wrong ones can be read in two ways.
fn theirs(schema: &str, message_type: MessageType, mut body: &[u8]) -> Option<(Vec<u8>, Value)> {
    // Finer timestamps are converted by us and not by the bare rules; an escape could spell one.
    if ["-micros", "-nanos", "\\u"].iter().any(|other| schema.contains(other)) {
        return None;
    }
    let writer = Schema::parse_str(schema).ok()?;
    let reader = Schema::parse_str(match message_type {
        MessageType::Increment => avsc::INCREMENT,
        MessageType::IncrementBatch => avsc::INCREMENT_BATCH,
    });
    let reader = reader.expect("our own schema");
    let written = GenericDatumReader::builder(&writer).build().ok()?.read_value(&mut body).ok()?;
    let body =
        GenericDatumWriter::builder(&writer).build().ok()?.write_value_to_vec(written).ok()?;
    let resolving = GenericDatumReader::builder(&writer).reader_schema(&reader).build().ok()?;
    let value = resolving.read_value(&mut body.as_slice()).ok()?;
    Some((body, value))
}

fn value(message_type: MessageType, message: Message<'_>, increments: &[Increment<'_>]) -> Value {
    let mut increments: Vec<Value> = increments.iter().map(increment).collect();
    match message_type {
        MessageType::Increment => increments.remove(0),
        MessageType::IncrementBatch => {
            record([("id", optional(message.id)), ("increments", Value::Array(increments))])
        }
    }
}

fn increment(increment: &Increment<'_>) -> Value {
    let &Increment { namespace, key, delta, at_ms, id } = increment;
    record([
        ("namespace", Value::String(namespace.to_owned())),
        ("key", Value::String(key.to_owned())),
        ("delta", Value::Long(delta)),
        ("at", Value::TimestampMillis(at_ms)),
        ("id", optional(id)),
    ])
}

fn record<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Record(fields.map(|(name, value)| (name.to_owned(), value)).into())
}

fn optional(text: Option<&str>) -> Value {
    match text {
        None => Value::Union(0, Box::new(Value::Null)),
        Some(text) => Value::Union(1, Box::new(Value::String(text.to_owned()))),
    }
}
