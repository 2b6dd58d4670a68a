//! Skips values of fields that are not ours.
//!
//! The bytes come from anyone, so their number bounds the work: a count that the bytes ahead cannot
//! hold is refused, items that take no bytes are never looped over, and the recursion has a limit.

use super::schema::{NodeId, Schema, Shape};
use crate::Reason;
use crate::cursor::Cursor;

/// How deep values may nest within a skipped field.
pub(super) const MAX_DEPTH: usize = 64;

impl Schema {
    pub(crate) fn skip(&self, cursor: &mut Cursor<'_>, id: NodeId) -> Result<(), Reason> {
        self.skip_nested(cursor, id, MAX_DEPTH)
    }

    fn skip_nested(&self, cursor: &mut Cursor<'_>, id: NodeId, depth: usize) -> Result<(), Reason> {
        let deeper = || depth.checked_sub(1).ok_or(Reason::Depth(MAX_DEPTH));
        match &self.node(id).shape {
            Shape::Null => {}
            Shape::Boolean => drop(cursor.boolean()?),
            Shape::Int => drop(cursor.int()?),
            Shape::Long => drop(cursor.long()?),
            Shape::Float => cursor.pass(4)?,
            Shape::Double => cursor.pass(8)?,
            Shape::Bytes | Shape::Text => drop(cursor.bytes()?),
            Shape::Fixed { bytes } => cursor.pass(*bytes)?,
            Shape::Enum { symbols } => drop(cursor.choice(*symbols)?),
            Shape::Array(item) => {
                let depth = deeper()?;
                let item_bytes = self.node(*item).min_bytes;
                self.skip_blocks(cursor, item_bytes, |cursor| {
                    self.skip_nested(cursor, *item, depth)
                })?;
            }
            Shape::Map(value) => {
                let depth = deeper()?;
                let entry_bytes = self.node(*value).min_bytes.saturating_add(1);
                self.skip_blocks(cursor, entry_bytes, |cursor| {
                    cursor.bytes()?;
                    self.skip_nested(cursor, *value, depth)
                })?;
            }
            Shape::Union(branches) => {
                let branch = cursor.choice(branches.len())?;
                self.skip_nested(cursor, branches[branch], deeper()?)?;
            }
            Shape::Record(record) => {
                let depth = deeper()?;
                for &field in &record.solid {
                    self.skip_nested(cursor, field, depth)?;
                }
            }
        }
        Ok(())
    }

    fn skip_blocks<'a>(
        &self,
        cursor: &mut Cursor<'a>,
        item_min_bytes: u64,
        mut skip: impl FnMut(&mut Cursor<'a>) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        while let Some(block) = cursor.block(item_min_bytes)? {
            match block.end {
                Some(end) => cursor.pass((end - cursor.position()) as u64)?,
                None if item_min_bytes == 0 => {}
                None => {
                    for _ in 0..block.items {
                        skip(cursor)?;
                    }
                }
            }
        }
        Ok(())
    }
}
