//! From a schema's JSON to its nodes.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{Field, Node, NodeId, Record, Schema, Shape};
use crate::plan::PlanError;

impl Schema {
    /// Takes the text of a schema, and those of the schemas whose names it uses; each of those
    /// uses names of itself and of the ones before it only.
    pub(crate) fn parse<'t>(
        text: &str,
        references: impl IntoIterator<Item = &'t str>,
    ) -> Result<Schema, PlanError> {
        let mut parser = Parser { nodes: Vec::new(), names: HashMap::new() };
        for reference in references {
            parser.schema(&serde_json::from_str(reference)?, "")?;
        }
        let root = parser.schema(&serde_json::from_str(text)?, "")?;
        Ok(Schema { nodes: parser.nodes, root })
    }
}

struct Parser {
    nodes: Vec<Node>,
    /// Full names of the records, enums and fixeds so far.
    names: HashMap<String, NodeId>,
}

impl Parser {
    /// `namespace` is the enclosing one, empty at the top.
    fn schema(&mut self, json: &Value, namespace: &str) -> Result<NodeId, PlanError> {
        match json {
            Value::String(name) => self.named(name, namespace),
            Value::Array(branches) => self.union(branches, namespace),
            Value::Object(object) => match object.get("type") {
                Some(Value::String(kind)) => self.object(kind, object, namespace),
                Some(nested @ (Value::Object(_) | Value::Array(_))) => {
                    self.schema(nested, namespace)
                }
                _ => Err(malformed("a schema", "it has no type")),
            },
            _ => Err(malformed("a schema", "it is neither a name, nor an object, nor a union")),
        }
    }

    fn named(&mut self, name: &str, namespace: &str) -> Result<NodeId, PlanError> {
        if let Some((shape, min_bytes)) = primitive(name) {
            return Ok(self.push(shape, min_bytes));
        }
        // A bare name that its namespace does not hold may be one without a namespace, as Java's
        // parser has it.
        let known = self.names.get(&qualified(name, namespace)).or_else(|| self.names.get(name));
        known.copied().ok_or_else(|| PlanError::UnknownName { name: name.to_owned() })
    }

    fn object(
        &mut self,
        kind: &str,
        object: &Map<String, Value>,
        namespace: &str,
    ) -> Result<NodeId, PlanError> {
        match kind {
            "record" | "error" => self.record(object, namespace),
            "enum" => self.enumeration(object, namespace),
            "fixed" => self.fixed(object, namespace),
            "array" => {
                let items =
                    object.get("items").ok_or_else(|| malformed("an array", "it has no items"))?;
                let items = self.schema(items, namespace)?;
                Ok(self.push(Shape::Array(items), 1))
            }
            "map" => {
                let values =
                    object.get("values").ok_or_else(|| malformed("a map", "it has no values"))?;
                let values = self.schema(values, namespace)?;
                Ok(self.push(Shape::Map(values), 1))
            }
            "int" | "long" => {
                let id = self.named(kind, namespace)?;
                let logical_type =
                    object.get("logicalType").and_then(Value::as_str).map(str::to_owned);
                self.nodes[id.0 as usize].logical_type = logical_type;
                Ok(id)
            }
            _ => self.named(kind, namespace),
        }
    }

    fn union(&mut self, branches: &[Value], namespace: &str) -> Result<NodeId, PlanError> {
        let branches: Vec<NodeId> = branches
            .iter()
            .map(|branch| self.schema(branch, namespace))
            .collect::<Result<_, _>>()?;
        if branches
            .iter()
            .any(|branch| matches!(self.nodes[branch.0 as usize].shape, Shape::Union(_)))
        {
            return Err(malformed("a union", "it holds another union"));
        }
        let shortest = branches.iter().map(|&branch| self.min_bytes(branch)).min();
        let shortest = shortest.ok_or_else(|| malformed("a union", "it has no branches"))?;
        Ok(self.push(Shape::Union(branches), shortest.saturating_add(1)))
    }

    fn record(
        &mut self,
        object: &Map<String, Value>,
        namespace: &str,
    ) -> Result<NodeId, PlanError> {
        let name = Name::of(object, namespace)?;
        // Defined before its fields are read, as they may refer to it. A type that holds itself
        // without a union, array or map between has no values, and each of those takes a byte: so
        // one byte is a lower bound that holds already.
        let open = Record { name: name.short().to_owned(), fields: Vec::new(), solid: Vec::new() };
        let id = self.define(&name, Shape::Record(open), 1)?;

        let Some(Value::Array(json_fields)) = object.get("fields") else {
            return Err(malformed(&name.full, "a record without fields"));
        };
        let mut fields = Vec::with_capacity(json_fields.len());
        let mut seen = HashSet::new();
        for json in json_fields {
            let Some(field) = json.get("name").and_then(Value::as_str) else {
                return Err(malformed(&name.full, "a field without a name"));
            };
            if !seen.insert(field) {
                return Err(PlanError::DefinedTwice { name: format!("{}.{field}", name.full) });
            }
            let json_type = json.get("type").ok_or_else(|| {
                malformed(&format!("{}.{field}", name.full), "a field without a type")
            })?;
            let node = self.schema(json_type, &name.namespace)?;
            fields.push(Field { name: field.to_owned(), node });
        }

        let solid: Vec<NodeId> = fields
            .iter()
            .map(|field| field.node)
            .filter(|&node| self.min_bytes(node) > 0)
            .collect();
        let min_bytes =
            solid.iter().fold(0_u64, |sum, &node| sum.saturating_add(self.min_bytes(node)));
        let node = &mut self.nodes[id.0 as usize];
        node.shape = Shape::Record(Record { name: name.short().to_owned(), fields, solid });
        node.min_bytes = min_bytes;
        Ok(id)
    }

    fn enumeration(
        &mut self,
        object: &Map<String, Value>,
        namespace: &str,
    ) -> Result<NodeId, PlanError> {
        let name = Name::of(object, namespace)?;
        let Some(Value::Array(symbols)) = object.get("symbols") else {
            return Err(malformed(&name.full, "an enum without symbols"));
        };
        self.define(&name, Shape::Enum { symbols: symbols.len() }, 1)
    }

    fn fixed(&mut self, object: &Map<String, Value>, namespace: &str) -> Result<NodeId, PlanError> {
        let name = Name::of(object, namespace)?;
        let Some(bytes) = object.get("size").and_then(Value::as_u64) else {
            return Err(malformed(&name.full, "a fixed without a size"));
        };
        self.define(&name, Shape::Fixed { bytes }, bytes)
    }

    fn define(&mut self, name: &Name, shape: Shape, min_bytes: u64) -> Result<NodeId, PlanError> {
        let id = self.push(shape, min_bytes);
        match self.names.insert(name.full.clone(), id) {
            None => Ok(id),
            Some(_) => Err(PlanError::DefinedTwice { name: name.full.clone() }),
        }
    }

    fn push(&mut self, shape: Shape, min_bytes: u64) -> NodeId {
        let id =
            NodeId(u32::try_from(self.nodes.len()).expect("a schema's text is shorter than 4 GiB"));
        self.nodes.push(Node { shape, min_bytes, logical_type: None });
        id
    }

    fn min_bytes(&self, id: NodeId) -> u64 {
        self.nodes[id.0 as usize].min_bytes
    }
}

struct Name {
    full: String,
    namespace: String,
}

impl Name {
    fn of(object: &Map<String, Value>, enclosing: &str) -> Result<Name, PlanError> {
        let Some(name) = object.get("name").and_then(Value::as_str) else {
            return Err(malformed("a named type", "it has no name"));
        };
        let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(enclosing);
        let full = qualified(name, namespace);
        let namespace = full.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
        Ok(Name { full, namespace })
    }

    fn short(&self) -> &str {
        self.full.rsplit_once('.').map_or(&self.full, |(_, short)| short)
    }
}

/// A name with a dot is full already, whatever the namespace.
fn qualified(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

fn primitive(name: &str) -> Option<(Shape, u64)> {
    Some(match name {
        "null" => (Shape::Null, 0),
        "boolean" => (Shape::Boolean, 1),
        "int" => (Shape::Int, 1),
        "long" => (Shape::Long, 1),
        "float" => (Shape::Float, 4),
        "double" => (Shape::Double, 8),
        "bytes" => (Shape::Bytes, 1),
        "string" => (Shape::Text, 1),
        _ => return None,
    })
}

fn malformed(what: &str, reason: &'static str) -> PlanError {
    PlanError::Malformed { what: what.to_owned(), reason }
}
