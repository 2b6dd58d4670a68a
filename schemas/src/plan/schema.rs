//! A writer's schema as nodes that refer to each other by number, so that a type may contain
//! itself.
//!
//! ```text
//!  {"type":"record","name":"A",      0 record A ─► next: 1
//!   "fields":[{"name":"next",    ─►  1 union ─► 2, 0
//!    "type":["null","A"]}]}          2 null
//! ```

mod parse;

use std::fmt;

/// Index into [`Schema::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(u32);

pub(super) struct Schema {
    nodes: Vec<Node>,
    root: NodeId,
}

pub(super) struct Node {
    pub(super) shape: Shape,
    /// The fewest bytes that a value takes. Zero only if every value takes none.
    pub(super) min_bytes: u64,
    /// The logical type of an int or a long; those of other types are not kept.
    pub(super) logical_type: Option<String>,
}

pub(super) enum Shape {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    Fixed { bytes: u64 },
    Enum { symbols: usize },
    Array(NodeId),
    Map(NodeId),
    Union(Vec<NodeId>),
    Record(Record),
}

pub(super) struct Record {
    /// Without its namespace.
    pub(super) name: String,
    pub(super) fields: Vec<Field>,
    /// The types of the fields that take bytes: the only ones that have to be skipped.
    pub(super) solid: Vec<NodeId>,
}

pub(super) struct Field {
    pub(super) name: String,
    pub(super) node: NodeId,
}

impl Schema {
    pub(super) fn root(&self) -> NodeId {
        self.root
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The type in a few words, for an error.
    pub(super) fn describe(&self, id: NodeId) -> String {
        let node = self.node(id);
        match &node.shape {
            Shape::Union(branches) => {
                let branches: Vec<String> =
                    branches.iter().map(|&branch| self.node(branch).to_string()).collect();
                format!("union of {}", branches.join(", "))
            }
            Shape::Array(item) => format!("array of {}", self.node(*item)),
            _ => node.to_string(),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.shape {
            Shape::Null => "null",
            Shape::Boolean => "boolean",
            Shape::Int => "int",
            Shape::Long => "long",
            Shape::Float => "float",
            Shape::Double => "double",
            Shape::Bytes => "bytes",
            Shape::Text => "string",
            Shape::Fixed { .. } => "fixed",
            Shape::Enum { .. } => "enum",
            Shape::Array(_) => "array",
            Shape::Map(_) => "map",
            Shape::Union(_) => "union",
            Shape::Record(record) => return write!(f, "record {}", record.name),
        })
    }
}
