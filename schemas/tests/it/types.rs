//! Random Avro types of every sort, nested, as JSON and with values: what a writer may add to our
//! records.

use std::collections::HashMap;
use std::mem::discriminant;

use apache_avro::types::Value;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::dice::Dice;

#[derive(Clone, Debug)]
pub(crate) enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    Uuid,
    Fixed(usize),
    Enum(usize),
    Array(Box<Type>),
    Map(Box<Type>),
    /// Branches of different sorts, none a union.
    Union(Vec<Type>),
    Record(Vec<Type>),
    /// A record whose second field names the type that its first defines.
    Twice(Box<Type>),
    /// A record that holds itself.
    List,
}

pub(crate) fn any_type() -> impl Strategy<Value = Type> {
    let leaf = prop_oneof![
        Just(Type::Null),
        Just(Type::Boolean),
        Just(Type::Int),
        Just(Type::Long),
        Just(Type::Float),
        Just(Type::Double),
        Just(Type::Bytes),
        Just(Type::Text),
        Just(Type::Uuid),
        (0..20_usize).prop_map(Type::Fixed),
        (1..5_usize).prop_map(Type::Enum),
        Just(Type::List),
    ];
    leaf.prop_recursive(4, 12, 3, |inner| {
        let named = prop_oneof![
            (0..20_usize).prop_map(Type::Fixed),
            (1..5_usize).prop_map(Type::Enum),
            Just(Type::List),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Type::Record),
        ];
        prop_oneof![
            inner.clone().prop_map(|item| Type::Array(Box::new(item))),
            inner.clone().prop_map(|value| Type::Map(Box::new(value))),
            prop::collection::vec(inner.clone(), 1..4).prop_filter_map("only unions", union),
            prop::collection::vec(inner, 0..4).prop_map(Type::Record),
            named.prop_map(|named| Type::Twice(Box::new(named))),
        ]
    })
}

/// `None` if nothing is left of the branches.
fn union(types: Vec<Type>) -> Option<Type> {
    let mut branches: Vec<Type> = Vec::new();
    for branch in types {
        let taken = branches.iter().any(|other| discriminant(other) == discriminant(&branch));
        // A uuid is a string to a union.
        let string = |t: &Type| matches!(t, Type::Text | Type::Uuid);
        let taken = taken || string(&branch) && branches.iter().any(string);
        if !taken && !matches!(branch, Type::Union(_)) {
            branches.push(branch);
        }
    }
    (!branches.is_empty()).then_some(Type::Union(branches))
}

/// Names that no schema has used yet.
#[derive(Default)]
pub(crate) struct Names(usize);

impl Names {
    /// The attributes that define a name, by each of the ways that Avro has, and the name to refer
    /// to it from a type in the namespace `enclosing`; the namespace within.
    fn define(&mut self, enclosing: &str) -> (serde_json::Map<String, Json>, String, String) {
        self.0 += 1;
        let short = format!("T{}", self.0);
        let (attributes, reference, within) = match self.0 % 3 {
            0 => (json!({"name": short}), short.clone(), enclosing.to_owned()),
            1 => (
                json!({"name": short, "namespace": "a.b"}),
                format!("a.b.{short}"),
                "a.b".to_owned(),
            ),
            _ => (json!({"name": format!("c.{short}")}), format!("c.{short}"), "c".to_owned()),
        };
        let Json::Object(attributes) = attributes else { unreachable!("an object above") };
        (attributes, reference, within)
    }
}

impl Type {
    pub(crate) fn json(&self, names: &mut Names, enclosing: &str) -> Json {
        self.render(names, enclosing).0
    }

    /// And the name that refers to it, if it has one.
    fn render(&self, names: &mut Names, enclosing: &str) -> (Json, Option<String>) {
        let (mut named, reference, within) = match self {
            Type::Fixed(_) | Type::Enum(_) | Type::Record(_) | Type::Twice(_) | Type::List => {
                names.define(enclosing)
            }
            _ => return (self.unnamed(names, enclosing), None),
        };
        let kind = match self {
            Type::Fixed(size) => {
                named.insert("size".into(), json!(size));
                "fixed"
            }
            Type::Enum(symbols) => {
                let symbols: Vec<String> = (0..*symbols).map(symbol).collect();
                named.insert("symbols".into(), json!(symbols));
                "enum"
            }
            Type::Record(fields) => {
                let fields: Vec<Json> = (fields.iter().enumerate())
                    .map(|(i, field)| {
                        json!({"name": format!("f{i}"), "type": field.json(names, &within)})
                    })
                    .collect();
                named.insert("fields".into(), json!(fields));
                "record"
            }
            Type::Twice(inner) => {
                let (first, second) = inner.render(names, &within);
                let fields = json!([{"name": "f0", "type": first}, {"name": "f1", "type": second}]);
                named.insert("fields".into(), fields);
                "record"
            }
            Type::List => {
                let itself = json!(["null", reference]);
                let fields = json!([{"name": "f0", "type": "int"}, {"name": "f1", "type": itself}]);
                named.insert("fields".into(), fields);
                "record"
            }
            _ => unreachable!("unnamed types have returned"),
        };
        named.insert("type".into(), json!(kind));
        (Json::Object(named), Some(reference))
    }

    fn unnamed(&self, names: &mut Names, enclosing: &str) -> Json {
        match self {
            Type::Null => json!("null"),
            Type::Boolean => json!({"type": "boolean"}),
            Type::Int => json!("int"),
            Type::Long => json!({"type": "long", "unknown": 1}),
            Type::Float => json!("float"),
            Type::Double => json!("double"),
            Type::Bytes => json!("bytes"),
            Type::Text => json!("string"),
            Type::Uuid => json!({"type": "string", "logicalType": "uuid"}),
            Type::Array(item) => json!({"type": "array", "items": item.json(names, enclosing)}),
            Type::Map(value) => json!({"type": "map", "values": value.json(names, enclosing)}),
            Type::Union(branches) => branches
                .iter()
                .map(|branch| branch.json(names, enclosing))
                .collect::<Vec<_>>()
                .into(),
            _ => unreachable!("named types are rendered with their names"),
        }
    }

    pub(crate) fn value(&self, dice: &mut Dice) -> Value {
        match self {
            Type::Null => Value::Null,
            Type::Boolean => Value::Boolean(dice.roll(2) == 1),
            Type::Int => Value::Int(dice.int()),
            Type::Long => Value::Long(dice.long()),
            Type::Float => Value::Float(dice.int() as f32),
            Type::Double => Value::Double(dice.long() as f64),
            Type::Bytes => Value::Bytes(dice.bytes()),
            Type::Text => Value::String(dice.text()),
            Type::Uuid => Value::Uuid("9c5b94b1-35ad-49bb-b118-8e8fc24abf80".parse().unwrap()),
            Type::Fixed(size) => {
                Value::Fixed(*size, (0..*size).map(|_| dice.bits() as u8).collect())
            }
            Type::Enum(symbols) => {
                let chosen = dice.roll(*symbols);
                Value::Enum(chosen as u32, symbol(chosen))
            }
            Type::Array(item) => {
                Value::Array((0..dice.roll(4)).map(|_| item.value(dice)).collect())
            }
            Type::Map(value) => {
                let entries: HashMap<String, Value> =
                    (0..dice.roll(4)).map(|_| (dice.text(), value.value(dice))).collect();
                Value::Map(entries)
            }
            Type::Union(branches) => {
                let chosen = dice.roll(branches.len());
                Value::Union(chosen as u32, Box::new(branches[chosen].value(dice)))
            }
            Type::Record(fields) => fields_of(fields.iter().map(|field| field.value(dice))),
            Type::Twice(inner) => fields_of([inner.value(dice), inner.value(dice)]),
            Type::List => (0..=dice.roll(4)).fold(Value::Null, |next, _| {
                let branch = u32::from(next != Value::Null);
                fields_of([Value::Int(dice.int()), Value::Union(branch, Box::new(next))])
            }),
        }
    }
}

fn fields_of(values: impl IntoIterator<Item = Value>) -> Value {
    Value::Record(
        values.into_iter().enumerate().map(|(i, value)| (format!("f{i}"), value)).collect(),
    )
}

fn symbol(i: usize) -> String {
    format!("S{i}")
}
