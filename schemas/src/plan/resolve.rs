//! Matches a writer's record with ours and makes the steps that read it.

use super::schema::{self, NodeId, Schema, Shape};
use super::{PlanError, RecordSteps};

const INCREMENT: &str = "Increment";
const BATCH: &str = "IncrementBatch";

/// The steps that read an `Increment`, in the order of the writer's fields.
pub(super) struct IncrementSteps {
    pub(super) steps: Vec<Step<ReadIncrement>>,
    /// Whether the writer's fields are ours, in our order and of our types.
    pub(super) is_canonical: bool,
    /// The fewest bytes that the writer's record takes.
    pub(super) min_bytes: u64,
}

/// The steps that read an `IncrementBatch`.
pub(super) struct BatchSteps {
    pub(super) steps: Vec<Step<ReadBatch>>,
}

pub(super) struct Step<R> {
    /// The writer's name of the field, for errors.
    pub(super) field: String,
    pub(super) read: R,
}

pub(super) enum ReadIncrement {
    Namespace(Source<Text>),
    Key(Source<Text>),
    Delta(Source<Number>),
    At(Source<Moment>),
    Id(Source<OptionalText>),
    Skip(NodeId),
}

pub(super) enum ReadBatch {
    Id(Source<OptionalText>),
    Increments(Source<Source<IncrementSteps>>),
    Skip(NodeId),
}

/// Where a value comes from: a type of the writer, or its union of which some branches fit.
#[derive(PartialEq)]
pub(super) enum Source<T> {
    Plain(T),
    Union(Vec<Option<T>>),
}

/// A string, or bytes promoted to one: they are encoded alike.
#[derive(PartialEq)]
pub(super) struct Text;

#[derive(PartialEq)]
pub(super) enum OptionalText {
    Null,
    Text,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Number {
    Int,
    Long,
}

#[derive(PartialEq)]
pub(super) struct Moment {
    pub(super) number: Number,
    pub(super) per_ms: i64,
}

/// The steps for a whole message.
pub(super) fn record(writer: &Schema) -> Result<RecordSteps, PlanError> {
    let root = writer.node(writer.root());
    match &root.shape {
        Shape::Record(record) if record.name == INCREMENT => {
            Ok(RecordSteps::Increment(increment(writer, record, root.min_bytes)?))
        }
        Shape::Record(record) if record.name == BATCH => {
            Ok(RecordSteps::Batch(batch(writer, record)?))
        }
        _ => Err(PlanError::NotOurs { writer: writer.describe(writer.root()) }),
    }
}

fn increment(
    writer: &Schema,
    record: &schema::Record,
    min_bytes: u64,
) -> Result<IncrementSteps, PlanError> {
    for field in ["namespace", "key", "delta", "at"] {
        require(record, INCREMENT, field)?;
    }
    let mut steps = Vec::with_capacity(record.fields.len());
    for field in &record.fields {
        let resolve = Resolve { writer, record: INCREMENT, node: field.node };
        let read = match field.name.as_str() {
            "namespace" => ReadIncrement::Namespace(resolve.text("namespace")?),
            "key" => ReadIncrement::Key(resolve.text("key")?),
            "delta" => ReadIncrement::Delta(resolve.number("delta")?),
            "at" => ReadIncrement::At(resolve.moment("at")?),
            "id" => ReadIncrement::Id(resolve.optional_text("id")?),
            _ if writer.node(field.node).min_bytes == 0 => continue,
            _ => ReadIncrement::Skip(field.node),
        };
        steps.push(Step { field: field.name.clone(), read });
    }
    let is_canonical = is_canonical(&steps);
    Ok(IncrementSteps { steps, is_canonical, min_bytes })
}

fn is_canonical(steps: &[Step<ReadIncrement>]) -> bool {
    let [namespace, key, delta, at, id] = steps else { return false };
    matches!(namespace.read, ReadIncrement::Namespace(Source::Plain(Text)))
        && matches!(key.read, ReadIncrement::Key(Source::Plain(Text)))
        && matches!(delta.read, ReadIncrement::Delta(Source::Plain(Number::Long)))
        && matches!(
            at.read,
            ReadIncrement::At(Source::Plain(Moment { number: Number::Long, per_ms: 1 }))
        )
        && matches!(&id.read, ReadIncrement::Id(Source::Union(branches))
            if *branches == [Some(OptionalText::Null), Some(OptionalText::Text)])
}

fn batch(writer: &Schema, record: &schema::Record) -> Result<BatchSteps, PlanError> {
    require(record, BATCH, "increments")?;
    let mut steps = Vec::with_capacity(record.fields.len());
    for field in &record.fields {
        let resolve = Resolve { writer, record: BATCH, node: field.node };
        let read = match field.name.as_str() {
            "id" => ReadBatch::Id(resolve.optional_text("id")?),
            "increments" => ReadBatch::Increments(resolve.increments("increments")?),
            _ if writer.node(field.node).min_bytes == 0 => continue,
            _ => ReadBatch::Skip(field.node),
        };
        steps.push(Step { field: field.name.clone(), read });
    }
    Ok(BatchSteps { steps })
}

fn require(
    record: &schema::Record,
    ours: &'static str,
    field: &'static str,
) -> Result<(), PlanError> {
    if record.fields.iter().any(|theirs| theirs.name == field) {
        Ok(())
    } else {
        Err(PlanError::MissingField { record: ours, field })
    }
}

/// One field of the writer, to be read as a field of ours.
struct Resolve<'w> {
    writer: &'w Schema,
    /// Our record, for errors.
    record: &'static str,
    node: NodeId,
}

impl Resolve<'_> {
    fn text(&self, field: &'static str) -> Result<Source<Text>, PlanError> {
        self.source(field, "a string", |node| {
            Ok(matches!(self.writer.node(node).shape, Shape::Text | Shape::Bytes).then_some(Text))
        })
    }

    fn optional_text(&self, field: &'static str) -> Result<Source<OptionalText>, PlanError> {
        self.source(field, "null or a string", |node| {
            Ok(match self.writer.node(node).shape {
                Shape::Null => Some(OptionalText::Null),
                Shape::Text | Shape::Bytes => Some(OptionalText::Text),
                _ => None,
            })
        })
    }

    fn number(&self, field: &'static str) -> Result<Source<Number>, PlanError> {
        self.source(field, "a long", |node| Ok(number(self.writer, node)))
    }

    fn moment(&self, field: &'static str) -> Result<Source<Moment>, PlanError> {
        self.source(field, "a timestamp in milliseconds", |node| {
            let Some(number) = number(self.writer, node) else { return Ok(None) };
            let logical_type = self.writer.node(node).logical_type.as_deref();
            let per_ms = match (number, logical_type) {
                (Number::Long, Some("timestamp-micros" | "local-timestamp-micros")) => 1_000,
                (Number::Long, Some("timestamp-nanos" | "local-timestamp-nanos")) => 1_000_000,
                (Number::Long, Some(time @ "time-micros"))
                | (Number::Int, Some(time @ ("date" | "time-millis"))) => {
                    let logical_type = time.to_owned();
                    return Err(PlanError::NoMoment { record: self.record, field, logical_type });
                }
                _ => 1,
            };
            Ok(Some(Moment { number, per_ms }))
        })
    }

    fn increments(&self, field: &'static str) -> Result<Source<Source<IncrementSteps>>, PlanError> {
        self.source(field, "an array of Increment", |node| {
            let Shape::Array(items) = self.writer.node(node).shape else { return Ok(None) };
            let items = Resolve { node: items, ..*self };
            let items = items.source(field, "an array of Increment", |node| {
                let item = self.writer.node(node);
                match &item.shape {
                    Shape::Record(record) if record.name == INCREMENT => {
                        increment(self.writer, record, item.min_bytes).map(Some)
                    }
                    _ => Ok(None),
                }
            })?;
            Ok(Some(items))
        })
    }

    /// The source of the field's value. `fit` says how a type of the writer that is no union is
    /// read, if it can be.
    fn source<T>(
        &self,
        field: &'static str,
        reader: &'static str,
        mut fit: impl FnMut(NodeId) -> Result<Option<T>, PlanError>,
    ) -> Result<Source<T>, PlanError> {
        let source = match &self.writer.node(self.node).shape {
            Shape::Union(branches) => {
                let branches =
                    branches.iter().map(|&branch| fit(branch)).collect::<Result<Vec<_>, _>>()?;
                branches.iter().any(Option::is_some).then_some(Source::Union(branches))
            }
            _ => fit(self.node)?.map(Source::Plain),
        };
        source.ok_or_else(|| PlanError::Unreadable {
            record: self.record,
            field,
            reader,
            writer: self.writer.describe(self.node),
        })
    }
}

fn number(writer: &Schema, node: NodeId) -> Option<Number> {
    match writer.node(node).shape {
        Shape::Int => Some(Number::Int),
        Shape::Long => Some(Number::Long),
        _ => None,
    }
}
