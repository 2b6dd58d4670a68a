//! Runs a plan over a body.
//!
//! ```text
//!  body ─► step ─► step ─► … ─► Increment ─► each
//!            │ what is wrong
//!            └─► Fault (borrows the field's name) ─► DecodeError (owns it; with item and position)
//! ```

use super::resolve::{
    BatchSteps, IncrementSteps, Moment, Number, OptionalText, ReadBatch, ReadIncrement, Source,
};
use super::schema::Schema;
use crate::cursor::Cursor;
use crate::{DecodeError, Increment, Message, Reason};

/// What is wrong in which field. It borrows the name, so that a read that fails allocates nothing.
struct Fault<'p> {
    field: &'p str,
    reason: Reason,
}

trait At<T> {
    fn at(self, field: &str) -> Result<T, Fault<'_>>;
}

impl<T> At<T> for Result<T, Reason> {
    #[inline(always)]
    fn at(self, field: &str) -> Result<T, Fault<'_>> {
        self.map_err(|reason| Fault { field, reason })
    }
}

pub(super) fn single<'a>(
    steps: &IncrementSteps,
    writer: &Schema,
    body: &'a [u8],
    mut each: impl FnMut(Increment<'a>),
) -> Result<Message<'a>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let increment = steps
        .read(writer, &mut cursor)
        .map_err(|fault| cursor.error(fault.field.to_owned(), fault.reason))?;
    cursor.end().map_err(|reason| cursor.error("Increment".to_owned(), reason))?;
    each(increment);
    Ok(Message { id: None, increments: 1 })
}

pub(super) fn batch<'a>(
    batch: &BatchSteps,
    writer: &Schema,
    body: &'a [u8],
    mut each: impl FnMut(Increment<'a>),
) -> Result<Message<'a>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let mut message = Message { id: None, increments: 0 };
    for step in &batch.steps {
        let done = match &step.read {
            ReadBatch::Id(source) => source.optional_text(&mut cursor).map(|id| message.id = id),
            ReadBatch::Skip(node) => writer.skip(&mut cursor, *node),
            ReadBatch::Increments(source) => {
                message.increments =
                    increments(source, writer, &mut cursor, &step.field, &mut each)?;
                Ok(())
            }
        };
        done.map_err(|reason| cursor.error(step.field.clone(), reason))?;
    }
    cursor.end().map_err(|reason| cursor.error("IncrementBatch".to_owned(), reason))?;
    Ok(message)
}

fn increments<'a>(
    array: &Source<Source<IncrementSteps>>,
    writer: &Schema,
    cursor: &mut Cursor<'a>,
    field: &str,
    each: &mut impl FnMut(Increment<'a>),
) -> Result<u64, DecodeError> {
    let items = array.pick(cursor).map_err(|reason| cursor.error(field.to_owned(), reason))?;
    let item_min_bytes = items.item_min_bytes();
    let mut read = 0;
    loop {
        let block = cursor.block(item_min_bytes);
        let Some(block) = block.map_err(|reason| cursor.error(field.to_owned(), reason))? else {
            return Ok(read);
        };
        for _ in 0..block.items {
            let steps = items
                .pick(cursor)
                .map_err(|reason| cursor.error(format!("{field}[{read}]"), reason))?;
            let increment = steps.read(writer, cursor).map_err(|fault| {
                cursor.error(format!("{field}[{read}].{}", fault.field), fault.reason)
            })?;
            each(increment);
            read += 1;
        }
        cursor.end_block(block.end).map_err(|reason| cursor.error(field.to_owned(), reason))?;
    }
}

impl IncrementSteps {
    #[inline(always)]
    fn read<'a>(
        &self,
        writer: &Schema,
        cursor: &mut Cursor<'a>,
    ) -> Result<Increment<'a>, Fault<'_>> {
        if self.is_canonical { canonical(cursor) } else { self.read_by_steps(writer, cursor) }
    }

    fn read_by_steps<'a>(
        &self,
        writer: &Schema,
        cursor: &mut Cursor<'a>,
    ) -> Result<Increment<'a>, Fault<'_>> {
        // Every field but `id` has a step, or there would be no plan.
        let mut increment = Increment { namespace: "", key: "", delta: 0, at_ms: 0, id: None };
        for step in &self.steps {
            let done = match &step.read {
                ReadIncrement::Namespace(source) => {
                    source.text(cursor).map(|namespace| increment.namespace = namespace)
                }
                ReadIncrement::Key(source) => source.text(cursor).map(|key| increment.key = key),
                ReadIncrement::Delta(source) => {
                    source.number(cursor).map(|delta| increment.delta = delta)
                }
                ReadIncrement::At(source) => {
                    source.at_ms(cursor).map(|at_ms| increment.at_ms = at_ms)
                }
                ReadIncrement::Id(source) => {
                    source.optional_text(cursor).map(|id| increment.id = id)
                }
                ReadIncrement::Skip(node) => writer.skip(cursor, *node),
            };
            done.at(&step.field)?;
        }
        Ok(increment)
    }
}

/// Reads an increment of a writer that has our own schema: the same as its steps, without the loop.
#[inline(always)]
fn canonical<'a>(cursor: &mut Cursor<'a>) -> Result<Increment<'a>, Fault<'static>> {
    Ok(Increment {
        namespace: cursor.text().at("namespace")?,
        key: cursor.text().at("key")?,
        delta: cursor.long().at("delta")?,
        at_ms: cursor.long().at("at")?,
        id: canonical_id(cursor).at("id")?,
    })
}

#[inline(always)]
fn canonical_id<'a>(cursor: &mut Cursor<'a>) -> Result<Option<&'a str>, Reason> {
    match cursor.choice(2)? {
        0 => Ok(None),
        _ => cursor.text().map(Some),
    }
}

impl<T> Source<T> {
    #[inline]
    fn pick(&self, cursor: &mut Cursor<'_>) -> Result<&T, Reason> {
        match self {
            Source::Plain(fit) => Ok(fit),
            Source::Union(branches) => {
                let mut ahead = *cursor;
                let branch = ahead.choice(branches.len())?;
                let fit = branches[branch].as_ref().ok_or(Reason::Branch(branch))?;
                *cursor = ahead;
                Ok(fit)
            }
        }
    }
}

impl Source<IncrementSteps> {
    fn item_min_bytes(&self) -> u64 {
        match self {
            Source::Plain(steps) => steps.min_bytes,
            // The branch's index; branches that are not increments may take nothing more.
            Source::Union(_) => 1,
        }
    }
}

impl Source<super::resolve::Text> {
    #[inline]
    fn text<'a>(&self, cursor: &mut Cursor<'a>) -> Result<&'a str, Reason> {
        self.pick(cursor)?;
        cursor.text()
    }
}

impl Source<OptionalText> {
    #[inline]
    fn optional_text<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Option<&'a str>, Reason> {
        match self.pick(cursor)? {
            OptionalText::Null => Ok(None),
            OptionalText::Text => cursor.text().map(Some),
        }
    }
}

impl Source<Number> {
    #[inline]
    fn number(&self, cursor: &mut Cursor<'_>) -> Result<i64, Reason> {
        self.pick(cursor)?.read(cursor)
    }
}

impl Source<Moment> {
    #[inline]
    fn at_ms(&self, cursor: &mut Cursor<'_>) -> Result<i64, Reason> {
        let moment = self.pick(cursor)?;
        let value = moment.number.read(cursor)?;
        Ok(value.div_euclid(moment.per_ms))
    }
}

impl Number {
    #[inline]
    fn read(self, cursor: &mut Cursor<'_>) -> Result<i64, Reason> {
        match self {
            Number::Int => cursor.int().map(i64::from),
            Number::Long => cursor.long(),
        }
    }
}
