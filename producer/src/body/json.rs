//! JSON and NDJSON, in one pass over the bytes.
//!
//! What is well-formed JSON but not an increment becomes a fault of its item and the parse goes on,
//! so that one answer names every bad item. Only broken syntax ends it: the body's in JSON, the
//! line's in NDJSON.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::json_item::OneItem;
use super::{Error, Fault, Findings, ItemPlace, Parsed, Rules, Shape};

/// One object or an array of them.
pub(super) fn json(body: &[u8], rules: Rules) -> Result<Parsed<'_>, Error> {
    let mut findings = Findings::new(rules);
    let is_array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let shape = if is_array { Shape::Batch } else { Shape::Single };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let read = match shape {
        Shape::Batch => Items { findings: &mut findings }.deserialize(&mut deserializer),
        Shape::Single => {
            let place = ItemPlace { item: 0, line: None };
            OneItem { findings: &mut findings, place }.deserialize(&mut deserializer)
        }
    };
    read.map_err(|error| malformed(&error, ""))?;
    deserializer.end().map_err(|error| {
        let advice = if begins_a_value(body, &error) {
            "; if it is NDJSON, send it as application/x-ndjson"
        } else {
            ""
        };
        malformed(&error, advice)
    })?;
    Ok(Parsed { shape, id: None, items: findings.finish()? })
}

/// One object a line; empty lines are skipped.
pub(super) fn ndjson(body: &[u8], rules: Rules) -> Result<Parsed<'_>, Error> {
    let mut findings = Findings::new(rules);
    let lines = body.split(|byte| *byte == b'\n').zip(1..);
    let filled = lines.filter(|(text, _)| !text.trim_ascii().is_empty());
    for (item, (text, line)) in filled.enumerate() {
        let place = ItemPlace { item, line: Some(line) };
        if let Err(error) = whole(text, OneItem { findings: &mut findings, place }) {
            findings.faults.push(|| Fault {
                item: Some(item),
                line: Some(line),
                column: Some(error.column()),
                field: None,
                reason: format!("malformed JSON: {}", message(&error)),
            });
        }
    }
    Ok(Parsed { shape: Shape::Batch, id: None, items: findings.finish()? })
}

/// One JSON value and nothing after it.
fn whole<'de, S: DeserializeSeed<'de>>(
    json: &'de [u8],
    seed: S,
) -> Result<S::Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

fn malformed(error: &serde_json::Error, advice: &str) -> Error {
    let (line, column) = (error.line(), error.column());
    let reason = format!("malformed JSON at line {line}, column {column}: {}", message(error));
    let reason = reason + advice;
    Error::Malformed(Fault { line: Some(line), column: Some(column), reason, ..Fault::default() })
}

/// Whether another object or array begins at the error.
fn begins_a_value(body: &[u8], error: &serde_json::Error) -> bool {
    let line = body.split(|byte| *byte == b'\n').nth(error.line() - 1);
    let first = line.and_then(|line| line.get(error.column().checked_sub(1)?));
    matches!(first, Some(b'{' | b'['))
}

/// The error's text without the place that it ends with.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).map_or_else(|| text.clone(), str::to_owned)
}

struct Items<'f, 'a> {
    findings: &'f mut Findings<'a>,
}

impl<'de> DeserializeSeed<'de> for Items<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of increments")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut item = 0;
        let place = |item| ItemPlace { item, line: None };
        while seq
            .next_element_seed(OneItem { findings: &mut *self.findings, place: place(item) })?
            .is_some()
        {
            item += 1;
        }
        Ok(())
    }
}
