//! Checked reading of Avro's binary encoding from a slice.

use crate::{DecodeError, Reason, utf8, varint};

/// Reads forward through a body. A read that fails leaves it where the read began.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    body_bytes: usize,
}

/// The start of one block of an array or a map.
pub(crate) struct Block {
    pub(crate) items: u64,
    /// The position after the block, where the writer stated its size.
    pub(crate) end: Option<usize>,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Cursor<'a> {
        Cursor { rest: body, body_bytes: body.len() }
    }

    pub(crate) fn position(&self) -> usize {
        self.body_bytes - self.rest.len()
    }

    #[cold]
    pub(crate) fn error(&self, field: String, reason: Reason) -> DecodeError {
        DecodeError { field, position: self.position(), reason }
    }

    #[inline(always)]
    pub(crate) fn long(&mut self) -> Result<i64, Reason> {
        let (value, rest) = varint::read(self.rest)?;
        self.rest = rest;
        Ok(value)
    }

    #[inline]
    pub(crate) fn int(&mut self) -> Result<i32, Reason> {
        let (value, rest) = varint::read(self.rest)?;
        let value = i32::try_from(value).map_err(|_| Reason::Range(value))?;
        self.rest = rest;
        Ok(value)
    }

    pub(crate) fn boolean(&mut self) -> Result<bool, Reason> {
        let value = match self.rest.first() {
            None => return Err(Reason::End),
            Some(0) => false,
            Some(1) => true,
            Some(&other) => return Err(Reason::Boolean(other)),
        };
        self.rest = &self.rest[1..];
        Ok(value)
    }

    #[inline(always)]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Reason> {
        let (len, rest) = varint::read(self.rest)?;
        let len = usize::try_from(len).map_err(|_| Reason::Length(len))?;
        let (bytes, rest) = rest.split_at_checked(len).ok_or(Reason::End)?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline(always)]
    pub(crate) fn text(&mut self) -> Result<&'a str, Reason> {
        let mut ahead = *self;
        let text = utf8::text(ahead.bytes()?)?;
        *self = ahead;
        Ok(text)
    }

    pub(crate) fn pass(&mut self, bytes: u64) -> Result<(), Reason> {
        let bytes = usize::try_from(bytes).map_err(|_| Reason::End)?;
        self.rest = self.rest.get(bytes..).ok_or(Reason::End)?;
        Ok(())
    }

    /// The index of a union's branch or an enum's symbol, of which there are `choices`.
    #[inline(always)]
    pub(crate) fn choice(&mut self, choices: usize) -> Result<usize, Reason> {
        let (index, rest) = varint::read(self.rest)?;
        let choice = usize::try_from(index)
            .ok()
            .filter(|&choice| choice < choices)
            .ok_or(Reason::NoBranch(index))?;
        self.rest = rest;
        Ok(choice)
    }

    /// The next block of an array or a map, or `None` after the last. An item takes at least
    /// `item_min_bytes`: a count that the bytes ahead cannot hold is refused here, before anyone
    /// loops or allocates by it.
    pub(crate) fn block(&mut self, item_min_bytes: u64) -> Result<Option<Block>, Reason> {
        let mut ahead = *self;
        let count = ahead.long()?;
        if count == 0 {
            *self = ahead;
            return Ok(None);
        }
        let mut room = ahead.rest.len();
        let mut end = None;
        if count < 0 {
            let size = ahead.long()?;
            let size = usize::try_from(size).map_err(|_| Reason::Length(size))?;
            if size > ahead.rest.len() {
                return Err(Reason::End);
            }
            room = size;
            end = Some(ahead.position() + size);
        }
        let items = count.unsigned_abs();
        if items.checked_mul(item_min_bytes).is_none_or(|bytes| bytes > room as u64) {
            return Err(Reason::Items { items, bytes: room });
        }
        *self = ahead;
        Ok(Some(Block { items, end }))
    }

    /// Checks that the items of a block ended where its size said.
    pub(crate) fn end_block(&self, end: Option<usize>) -> Result<(), Reason> {
        match end {
            Some(end) if end != self.position() => {
                Err(Reason::BlockSize(end.abs_diff(self.position())))
            }
            _ => Ok(()),
        }
    }

    /// Checks that nothing follows.
    pub(crate) fn end(&self) -> Result<(), Reason> {
        if self.rest.is_empty() { Ok(()) } else { Err(Reason::Trailing(self.rest.len())) }
    }
}
