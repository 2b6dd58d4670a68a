/// A body that is not what its schema says. Nothing of it may be counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` at byte {position}: {reason}")]
pub struct DecodeError {
    /// As the writer's schema names it, with the item before it: `increments[3].key`. The record
    /// itself when nothing in it is to blame.
    pub field: String,
    /// Where in the body the offending bytes begin.
    pub position: usize,
    pub reason: Reason,
}

/// What is wrong at that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("the body ends too early")]
    End,
    #[error("the number has more than 64 bits")]
    Varint,
    #[error("{0} is out of range")]
    Range(i64),
    #[error("{0} is not a length")]
    Length(i64),
    #[error("not UTF-8")]
    Utf8,
    #[error("{0:#04x} is not a boolean")]
    Boolean(u8),
    #[error("the schema has no branch or symbol {0}")]
    NoBranch(i64),
    #[error("branch {0} of the writer's union cannot stand here")]
    Branch(usize),
    #[error("{items} items do not fit into {bytes} bytes")]
    Items { items: u64, bytes: usize },
    #[error("the block's items end {0} bytes away from where its size says")]
    BlockSize(usize),
    #[error("nested deeper than {0} levels")]
    Depth(usize),
    #[error("{0} bytes follow its end")]
    Trailing(usize),
}
