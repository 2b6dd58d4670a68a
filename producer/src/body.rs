//! A request's body, read and checked whole: either every increment in it can be counted, or all
//! that is wrong is said.
//!
//! ```text
//!  application/json      ─► json   ─┐
//!  application/x-ndjson  ─► ndjson ─┼─► fields ─► Item… ─► Parsed
//!  application/avro      ─► avro   ─┘      └────► Faults ─► 400
//! ```
//!
//! Pure: bytes and the present time in, increments or what is wrong out.

mod avro;
mod fault;
mod fields;
mod json;
mod json_item;
mod media_type;
mod number;
#[cfg(test)]
mod tests;
mod value;

use std::borrow::Cow;

use tally_platform::http::without_byte_order_mark;
use tally_schemas::Increment;

pub(crate) use avro::Avro;
pub(crate) use fault::{Error, Fault, Faults};
pub(crate) use media_type::{MediaType, MediaTypeError};

/// What is taken for granted about an increment that does not say it, and what all are held
/// against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// When an event happened that does not say it.
    pub(crate) now_ms: i64,
    pub(crate) counting: tally_counts::Rules,
}

/// A body in which every increment can be counted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed<'a> {
    pub(crate) shape: Shape,
    /// The batch's own id, which only Avro can tell.
    pub(crate) id: Option<&'a str>,
    pub(crate) items: Vec<Item<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Single,
    Batch,
}

/// One increment, its strings borrowed from the body where they stand in it as they are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Item<'a> {
    pub(crate) namespace: Cow<'a, str>,
    pub(crate) key: Cow<'a, str>,
    pub(crate) delta: i64,
    pub(crate) at_ms: i64,
    pub(crate) id: Option<Cow<'a, str>>,
}

impl Item<'_> {
    pub(crate) fn increment(&self) -> Increment<'_> {
        Increment {
            namespace: &self.namespace,
            key: &self.key,
            delta: self.delta,
            at_ms: self.at_ms,
            id: self.id.as_deref(),
        }
    }
}

pub(crate) fn parse<'a>(
    media_type: MediaType,
    avro: &Avro,
    body: &'a [u8],
    rules: Rules,
) -> Result<Parsed<'a>, Error> {
    let nothing = || {
        let reason = "there are no increments in it".into();
        Error::Malformed(Fault { reason, ..Fault::default() })
    };
    let body = match media_type {
        MediaType::Json | MediaType::NdJson => without_byte_order_mark(body),
        MediaType::Avro => body,
    };
    if body.trim_ascii().is_empty() {
        return Err(nothing());
    }
    let parsed = match media_type {
        MediaType::Json => json::json(body, rules),
        MediaType::NdJson => json::ndjson(body, rules),
        MediaType::Avro => avro.parse(body, rules),
    }?;
    if parsed.items.is_empty() { Err(nothing()) } else { Ok(parsed) }
}

/// Items and faults as they are found.
struct Findings<'a> {
    rules: Rules,
    items: Vec<Item<'a>>,
    faults: Faults,
}

/// Which item it is, and in NDJSON its line.
#[derive(Clone, Copy)]
struct ItemPlace {
    item: usize,
    line: Option<usize>,
}

impl<'a> Findings<'a> {
    fn new(rules: Rules) -> Findings<'a> {
        Findings { rules, items: Vec::new(), faults: Faults::default() }
    }

    fn fault(&mut self, place: ItemPlace, field: Option<&str>, reason: impl FnOnce() -> String) {
        self.faults.push(|| Fault {
            item: Some(place.item),
            line: place.line,
            column: None,
            field: field.map(str::to_owned),
            reason: reason(),
        });
    }

    fn finish(self) -> Result<Vec<Item<'a>>, Error> {
        if self.faults.is_empty() { Ok(self.items) } else { Err(Error::Invalid(self.faults)) }
    }
}
