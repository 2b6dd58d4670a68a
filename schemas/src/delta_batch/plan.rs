//! Makes a batch by the schema of another version of Tally one by our own, by Avro's rules of
//! schema resolution, so that a field that comes or goes stops nobody while versions are mixed.
//!
//! ```text
//!  writer's body  │ from │ topic_id │ note │ to │ … │ deltas: bucket, namespace, … │
//!                     └──────┐ │              │
//!  our body       │ topic_id │ … │ from │ to │ … │ correction: false │ deltas: namespace, … │
//! ```
//!
//! A value that both schemas have is encoded alike in both, so its bytes are copied; what is not
//! ours is left out.

use std::borrow::Cow;
use std::ops::Range;

use crate::cursor::Cursor;
use crate::plan::PlanError;
use crate::plan::schema::{NodeId, Record, Schema, Shape};
use crate::{DecodeError, Reason, varint};

const BATCH: &str = "DeltaBatch";
const DELTA: &str = "Delta";
const DELTAS: &str = "deltas";

/// The fields of our batch before its deltas, in our order.
const HEADER: [OurField; 10] = [
    OurField { name: "topic_id", kind: Kind::Text, default: None },
    OurField { name: "partition", kind: Kind::Int, default: None },
    OurField { name: "from", kind: Kind::Long, default: None },
    OurField { name: "to", kind: Kind::Long, default: None },
    OurField { name: "counted", kind: Kind::Long, default: None },
    OurField { name: "duplicate", kind: Kind::Long, default: None },
    OurField { name: "rejected", kind: Kind::Long, default: None },
    OurField { name: "increments", kind: Kind::Long, default: None },
    OurField { name: "fingerprint", kind: Kind::Long, default: None },
    // False.
    OurField { name: "correction", kind: Kind::Boolean, default: Some(&[0]) },
];

/// The fields of our delta, in our order.
const ITEM: [OurField; 5] = [
    OurField { name: "namespace", kind: Kind::Text, default: None },
    OurField { name: "key", kind: Kind::Text, default: None },
    OurField { name: "bucket", kind: Kind::Long, default: None },
    OurField { name: "sum", kind: Kind::Long, default: None },
    OurField { name: "events", kind: Kind::Long, default: None },
];

struct OurField {
    name: &'static str,
    kind: Kind,
    /// The bytes of the value where the writer has none; `None` where it must have one.
    default: Option<&'static [u8]>,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Int,
    Long,
    Boolean,
}

/// How the batches of one writer schema become ours.
pub struct DeltaBatchPlan {
    writer: Schema,
    header: RecordCopy<{ HEADER.len() }>,
    delta: RecordCopy<{ ITEM.len() }>,
    /// The fewest bytes that the writer's delta takes.
    delta_min_bytes: u64,
    /// Whether each batch is ours as it is.
    is_ours: bool,
}

/// The writer's fields of a record, in the writer's order.
struct RecordCopy<const N: usize> {
    fields: Vec<WriterField>,
    ours: &'static [OurField; N],
}

struct WriterField {
    name: String,
    node: NodeId,
    place: Place,
}

/// Where a field of the writer's is in our record.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// The index of our field.
    At(usize),
    Deltas,
    Nowhere,
}

impl DeltaBatchPlan {
    /// Resolves a writer's schema against `tally.DeltaBatch`; as everywhere in Avro's rules, the
    /// namespace does not matter.
    pub fn new(writer_schema: &str) -> Result<DeltaBatchPlan, PlanError> {
        let writer = Schema::parse(writer_schema, [])?;
        let Shape::Record(batch) = &writer.node(writer.root()).shape else {
            return Err(not_a_batch(&writer));
        };
        if batch.name != BATCH {
            return Err(not_a_batch(&writer));
        }
        let header = RecordCopy::new(&writer, batch, BATCH, &HEADER)?;
        let Some(deltas) = header.fields.iter().find(|field| field.place == Place::Deltas) else {
            return Err(PlanError::MissingField { record: BATCH, field: DELTAS });
        };
        let (delta, delta_min_bytes) = delta_record(&writer, deltas.node)?;
        let delta = RecordCopy::new(&writer, delta, DELTA, &ITEM)?;
        let deltas_are_last =
            header.fields.last().is_some_and(|field| field.place == Place::Deltas);
        let is_ours = deltas_are_last
            && header.fields.len() == HEADER.len() + 1
            && header.is_in_our_order()
            && delta.fields.len() == ITEM.len()
            && delta.is_in_our_order();
        Ok(DeltaBatchPlan { header, delta, delta_min_bytes, is_ours, writer })
    }

    /// The body of the same batch by our schema, for [`super::DeltaBatch::decode`]. It has at most
    /// one byte more than the writer's.
    pub fn to_ours<'a>(&self, body: &'a [u8]) -> Result<Cow<'a, [u8]>, DecodeError> {
        if self.is_ours {
            return Ok(Cow::Borrowed(body));
        }
        let mut cursor = Cursor::new(body);
        let mut values = [const { 0..0 }; HEADER.len()];
        let mut deltas = Vec::new();
        for field in &self.header.fields {
            if field.place == Place::Deltas {
                self.copy_deltas(&mut cursor, body, &mut deltas)?;
            } else {
                let copied = field.pass(&self.writer, &mut cursor, &mut values);
                copied.map_err(|reason| cursor.error(field.name.clone(), reason))?;
            }
        }
        cursor.end().map_err(|reason| cursor.error(BATCH.to_owned(), reason))?;
        let mut ours = Vec::with_capacity(body.len() + 1);
        self.header.write(body, &values, &mut ours);
        ours.append(&mut deltas);
        Ok(Cow::Owned(ours))
    }

    fn copy_deltas(
        &self,
        cursor: &mut Cursor<'_>,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        let mut item = 0;
        let of_array = |cursor: &Cursor<'_>, reason| cursor.error(DELTAS.to_owned(), reason);
        loop {
            let block =
                cursor.block(self.delta_min_bytes).map_err(|reason| of_array(cursor, reason))?;
            let Some(block) = block else { break };
            // The bytes ahead hold so many items.
            varint::write(out, block.items.cast_signed());
            for _ in 0..block.items {
                let mut values = [const { 0..0 }; ITEM.len()];
                for field in &self.delta.fields {
                    field.pass(&self.writer, cursor, &mut values).map_err(|reason| {
                        cursor.error(format!("{DELTAS}[{item}].{}", field.name), reason)
                    })?;
                }
                self.delta.write(body, &values, out);
                item += 1;
            }
            cursor.end_block(block.end).map_err(|reason| of_array(cursor, reason))?;
        }
        varint::write(out, 0);
        Ok(())
    }
}

impl<const N: usize> RecordCopy<N> {
    fn new(
        writer: &Schema,
        record: &Record,
        name: &'static str,
        ours: &'static [OurField; N],
    ) -> Result<RecordCopy<N>, PlanError> {
        let needs = |ours: &&OurField| {
            ours.default.is_none() && !record.fields.iter().any(|field| field.name == ours.name)
        };
        if let Some(OurField { name: field, .. }) = ours.iter().find(needs) {
            return Err(PlanError::MissingField { record: name, field });
        }
        let mut fields = Vec::with_capacity(record.fields.len());
        for field in &record.fields {
            let at = ours.iter().position(|ours| ours.name == field.name);
            if let Some(at) = at {
                ours[at].kind.check(writer, field.node, name, ours[at].name)?;
            }
            let place = match at {
                Some(at) => Place::At(at),
                None if name == BATCH && field.name == DELTAS => Place::Deltas,
                None => Place::Nowhere,
            };
            fields.push(WriterField { name: field.name.clone(), node: field.node, place });
        }
        Ok(RecordCopy { fields, ours })
    }

    fn is_in_our_order(&self) -> bool {
        let places = self.fields.iter().map(|field| field.place);
        places.take(N).eq((0..N).map(Place::At))
    }

    /// Appends the values, which are ranges of the body.
    fn write(&self, body: &[u8], values: &[Range<usize>; N], out: &mut Vec<u8>) {
        for (ours, value) in self.ours.iter().zip(values) {
            // Every value takes a byte at least: an empty range is one that the writer lacks.
            out.extend_from_slice(match ours.default {
                Some(default) if value.is_empty() => default,
                _ => &body[value.clone()],
            });
        }
    }
}

impl WriterField {
    /// Moves past the field's value, and notes where it is if it is ours.
    fn pass(
        &self,
        writer: &Schema,
        cursor: &mut Cursor<'_>,
        values: &mut [Range<usize>],
    ) -> Result<(), Reason> {
        let begin = cursor.position();
        writer.skip(cursor, self.node)?;
        if let Place::At(at) = self.place {
            values[at] = begin..cursor.position();
        }
        Ok(())
    }
}

impl Kind {
    /// Whether a value of the writer's type is encoded as one of this kind.
    fn check(
        self,
        writer: &Schema,
        node: NodeId,
        record: &'static str,
        field: &'static str,
    ) -> Result<(), PlanError> {
        let shape = &writer.node(node).shape;
        let (fits, reader) = match self {
            Kind::Text => (matches!(shape, Shape::Text | Shape::Bytes), "a string"),
            Kind::Int => (matches!(shape, Shape::Int), "an int"),
            Kind::Long => (matches!(shape, Shape::Long | Shape::Int), "a long"),
            Kind::Boolean => (matches!(shape, Shape::Boolean), "a boolean"),
        };
        if fits {
            return Ok(());
        }
        Err(PlanError::Unreadable { record, field, reader, writer: writer.describe(node) })
    }
}

/// The record that the writer's deltas are an array of.
fn delta_record(writer: &Schema, node: NodeId) -> Result<(&Record, u64), PlanError> {
    if let Shape::Array(items) = writer.node(node).shape
        && let Shape::Record(record) = &writer.node(items).shape
        && record.name == DELTA
    {
        return Ok((record, writer.node(items).min_bytes));
    }
    let (reader, writer) = ("an array of Delta", writer.describe(node));
    Err(PlanError::Unreadable { record: BATCH, field: DELTAS, reader, writer })
}

fn not_a_batch(writer: &Schema) -> PlanError {
    PlanError::NoDeltaBatch { writer: writer.describe(writer.root()) }
}
