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
pub(crate) struct NodeId(u32);

pub(crate) struct Schema {
    nodes: Vec<Node>,
    root: NodeId,
}

pub(crate) struct Node {
    pub(crate) shape: Shape,
    /// The fewest bytes that a value takes. Zero only if every value takes none.
    pub(crate) min_bytes: u64,
    /// The logical type of an int or a long; those of other types are not kept.
    pub(crate) logical_type: Option<String>,
}

pub(crate) enum Shape {
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

pub(crate) struct Record {
    /// Without its namespace.
    pub(crate) name: String,
    pub(crate) fields: Vec<Field>,
    /// The types of the fields that take bytes: the only ones that have to be skipped.
    pub(crate) solid: Vec<NodeId>,
}

pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) node: NodeId,
}

impl Schema {
    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The type in a few words, for an error.
    pub(crate) fn describe(&self, id: NodeId) -> String {
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
