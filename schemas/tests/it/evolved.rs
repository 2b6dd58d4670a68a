//! Random writer schemas that Avro's rules resolve to ours, and messages written by them.

use apache_avro::types::Value;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tally_schemas::Increment;

use crate::dice::Dice;
use crate::types::{Names, Type, any_type};

/// An increment that owns its strings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Owned {
    pub(crate) namespace: String,
    pub(crate) key: String,
    pub(crate) delta: i64,
    pub(crate) at_ms: i64,
    pub(crate) id: Option<String>,
}

impl From<&Increment<'_>> for Owned {
    fn from(increment: &Increment<'_>) -> Owned {
        Owned {
            namespace: increment.namespace.to_owned(),
            key: increment.key.to_owned(),
            delta: increment.delta,
            at_ms: increment.at_ms,
            id: increment.id.map(str::to_owned),
        }
    }
}

impl Owned {
    pub(crate) fn random(dice: &mut Dice) -> Owned {
        Owned {
            namespace: dice.text(),
            key: dice.text(),
            delta: dice.long(),
            at_ms: dice.long(),
            id: (dice.roll(2) == 1).then(|| dice.text()),
        }
    }

    pub(crate) fn borrowed(&self) -> Increment<'_> {
        Increment {
            namespace: &self.namespace,
            key: &self.key,
            delta: self.delta,
            at_ms: self.at_ms,
            id: self.id.as_deref(),
        }
    }
}

/// How a writer has one of our fields: its type, or a union of it and others.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    base: Base,
    /// Branches before and after the base, if it is in a union.
    union: Option<(Vec<Type>, Vec<Type>)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Base {
    Text,
    Bytes,
    Int,
    Long,
    Millis,
    Null,
}

impl Field {
    fn json(&self, names: &mut Names) -> Json {
        let base = match self.base {
            Base::Text => json!("string"),
            Base::Bytes => json!("bytes"),
            Base::Int => json!("int"),
            Base::Long => json!("long"),
            Base::Millis => json!({"type": "long", "logicalType": "timestamp-millis"}),
            Base::Null => json!("null"),
        };
        let Some((before, after)) = &self.union else { return base };
        let mut branches: Vec<Json> = before.iter().map(|branch| branch.json(names, "")).collect();
        branches.push(base);
        branches.extend(after.iter().map(|branch| branch.json(names, "")));
        Json::Array(branches)
    }

    fn wrap(&self, value: Value) -> Value {
        match &self.union {
            None => value,
            Some((before, _)) => Value::Union(before.len() as u32, Box::new(value)),
        }
    }

    fn text(&self, text: &str) -> Value {
        self.wrap(match self.base {
            Base::Bytes => Value::Bytes(text.as_bytes().to_vec()),
            _ => Value::String(text.to_owned()),
        })
    }

    /// And the number that it holds: an int has no room for every long.
    fn number(&self, dice: &mut Dice) -> (Value, i64) {
        let number = if self.base == Base::Int { i64::from(dice.int()) } else { dice.long() };
        let value = match self.base {
            Base::Int => Value::Int(number as i32),
            Base::Millis => Value::TimestampMillis(number),
            _ => Value::Long(number),
        };
        (self.wrap(value), number)
    }

    fn optional_text(&self, dice: &mut Dice) -> (Value, Option<String>) {
        if self.base == Base::Null {
            return (self.wrap(Value::Null), None);
        }
        let nulls =
            |branches: &[Type]| branches.iter().position(|branch| matches!(branch, Type::Null));
        let null = self.union.as_ref().and_then(|(before, after)| {
            nulls(before).or_else(|| nulls(after).map(|i| before.len() + 1 + i))
        });
        match null {
            Some(branch) if dice.roll(2) == 0 => {
                (Value::Union(branch as u32, Box::new(Value::Null)), None)
            }
            _ => {
                let text = dice.text();
                (self.text(&text), Some(text))
            }
        }
    }
}

fn field(bases: &'static [Base], others: Vec<Type>) -> impl Strategy<Value = Field> {
    let others = prop::sample::subsequence(others.clone(), 0..=others.len()).prop_shuffle();
    let union =
        prop::option::of((others, any::<prop::sample::Index>()).prop_map(|(others, at)| {
            let (before, after) = others.split_at(at.index(others.len() + 1));
            (before.to_vec(), after.to_vec())
        }));
    (prop::sample::select(bases), union).prop_map(|(base, union)| Field { base, union })
}

fn text() -> impl Strategy<Value = Field> {
    field(
        &[Base::Text, Base::Bytes],
        vec![Type::Null, Type::Int, Type::Array(Box::new(Type::Long))],
    )
}

fn number(bases: &'static [Base]) -> impl Strategy<Value = Field> {
    field(bases, vec![Type::Null, Type::Text, Type::Double])
}

fn optional_text() -> impl Strategy<Value = Field> {
    let null = field(&[Base::Null], vec![Type::Boolean]);
    let text = field(&[Base::Text, Base::Bytes], vec![Type::Null, Type::Double]);
    prop_oneof![1 => null, 5 => text]
}

/// A field of a writer's record: one of ours, or one of its own.
#[derive(Clone, Debug)]
enum Slot {
    Namespace(Field),
    Key(Field),
    Delta(Field),
    At(Field),
    Id(Field),
    Increments { items_union: bool, increment: IncrementWriter },
    Extra(usize, Type),
}

impl Slot {
    fn json(&self, names: &mut Names) -> Json {
        let (name, json) = match self {
            Slot::Namespace(field) => ("namespace", field.json(names)),
            Slot::Key(field) => ("key", field.json(names)),
            Slot::Delta(field) => ("delta", field.json(names)),
            Slot::At(field) => ("at", field.json(names)),
            Slot::Id(field) => ("id", field.json(names)),
            Slot::Increments { items_union, increment } => {
                let item = increment.json(names);
                let items = if *items_union { json!(["null", item]) } else { item };
                ("increments", json!({"type": "array", "items": items}))
            }
            Slot::Extra(i, extra) => {
                return json!({"name": format!("extra{i}"), "type": extra.json(names, "")});
            }
        };
        json!({"name": name, "type": json})
    }
}

fn slots(
    ours: impl Strategy<Value = Vec<Slot>>,
    id: impl Strategy<Value = Option<Field>>,
    extras: usize,
) -> impl Strategy<Value = Vec<Slot>> {
    (ours, id, prop::collection::vec(any_type(), 0..extras))
        .prop_map(|(mut slots, id, extras)| {
            slots.extend(id.map(Slot::Id));
            slots.extend(extras.into_iter().enumerate().map(|(i, extra)| Slot::Extra(i, extra)));
            slots
        })
        .prop_shuffle()
}

/// A writer of `Increment`.
#[derive(Clone, Debug)]
pub(crate) struct IncrementWriter {
    slots: Vec<Slot>,
}

pub(crate) fn increment_writer() -> impl Strategy<Value = IncrementWriter> {
    let ours = (
        text(),
        text(),
        number(&[Base::Int, Base::Long]),
        number(&[Base::Int, Base::Long, Base::Millis]),
    )
        .prop_map(|(namespace, key, delta, at)| {
            vec![Slot::Namespace(namespace), Slot::Key(key), Slot::Delta(delta), Slot::At(at)]
        });
    slots(ours, prop::option::weighted(0.8, optional_text()), 4)
        .prop_map(|slots| IncrementWriter { slots })
}

impl IncrementWriter {
    /// Its schema.
    pub(crate) fn text(&self) -> String {
        self.json(&mut Names::default()).to_string()
    }

    fn json(&self, names: &mut Names) -> Json {
        let fields: Vec<Json> = self.slots.iter().map(|slot| slot.json(names)).collect();
        json!({"type": "record", "name": "Increment", "fields": fields})
    }

    /// A value, and what we should read from it.
    pub(crate) fn value(&self, dice: &mut Dice) -> (Value, Owned) {
        let mut owned = Owned::random(dice);
        owned.id = None;
        let mut fields = Vec::new();
        for slot in &self.slots {
            let (name, value) = match slot {
                Slot::Namespace(field) => ("namespace", field.text(&owned.namespace)),
                Slot::Key(field) => ("key", field.text(&owned.key)),
                Slot::Delta(field) => {
                    let (value, delta) = field.number(dice);
                    owned.delta = delta;
                    ("delta", value)
                }
                Slot::At(field) => {
                    let (value, at_ms) = field.number(dice);
                    owned.at_ms = at_ms;
                    ("at", value)
                }
                Slot::Id(field) => {
                    let (value, id) = field.optional_text(dice);
                    owned.id = id;
                    ("id", value)
                }
                Slot::Extra(i, extra) => {
                    fields.push((format!("extra{i}"), extra.value(dice)));
                    continue;
                }
                Slot::Increments { .. } => unreachable!("only a batch holds increments"),
            };
            fields.push((name.to_owned(), value));
        }
        (Value::Record(fields), owned)
    }
}

/// A writer of `IncrementBatch`.
#[derive(Clone, Debug)]
pub(crate) struct BatchWriter {
    slots: Vec<Slot>,
}

pub(crate) fn batch_writer() -> impl Strategy<Value = BatchWriter> {
    let ours = (any::<bool>(), increment_writer())
        .prop_map(|(items_union, increment)| vec![Slot::Increments { items_union, increment }]);
    slots(ours, prop::option::weighted(0.8, optional_text()), 3)
        .prop_map(|slots| BatchWriter { slots })
}

impl BatchWriter {
    /// Its schema.
    pub(crate) fn text(&self) -> String {
        let names = &mut Names::default();
        let fields: Vec<Json> = self.slots.iter().map(|slot| slot.json(names)).collect();
        json!({"type": "record", "name": "IncrementBatch", "namespace": "acme", "fields": fields})
            .to_string()
    }

    /// A value, and what we should read from it: the batch's id and the increments.
    pub(crate) fn value(&self, dice: &mut Dice) -> (Value, Option<String>, Vec<Owned>) {
        let mut batch_id = None;
        let mut owned = Vec::new();
        let mut fields = Vec::new();
        for slot in &self.slots {
            let (name, value) = match slot {
                Slot::Id(field) => {
                    let (value, id) = field.optional_text(dice);
                    batch_id = id;
                    ("id".to_owned(), value)
                }
                Slot::Increments { items_union, increment } => {
                    let mut items = Vec::new();
                    for _ in 0..dice.roll(6) {
                        let (item, expected) = increment.value(dice);
                        items.push(if *items_union {
                            Value::Union(1, Box::new(item))
                        } else {
                            item
                        });
                        owned.push(expected);
                    }
                    ("increments".to_owned(), Value::Array(items))
                }
                Slot::Extra(i, extra) => (format!("extra{i}"), extra.value(dice)),
                _ => unreachable!("a batch has no fields of an increment"),
            };
            fields.push((name, value));
        }
        (Value::Record(fields), batch_id, owned)
    }
}
