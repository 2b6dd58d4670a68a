//! One JSON object as an increment, or as faults.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use tally_counts::{check_name, check_namespace};

use super::value::{Exact, Value};
use super::{Findings, Item, ItemPlace, fields};

/// How much of an unknown field's name is told.
const SHOWN_NAME_CHARS: usize = 64;

/// Reads a value into the findings. It fails only on broken syntax.
pub(super) struct OneItem<'f, 'a> {
    pub(super) findings: &'f mut Findings<'a>,
    pub(super) place: ItemPlace,
}

impl OneItem<'_, '_> {
    fn not_an_object<E>(self, kind: &str) -> Result<(), E> {
        self.findings.fault(self.place, None, || format!("must be an object, not {kind}"));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for OneItem<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneItem<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an increment")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let OneItem { findings, place } = self;
        let mut draft = Draft::default();
        let mut is_sound = true;
        while let Some(name) = map.next_key::<Name>()? {
            match name {
                Name::Known(field) => {
                    let value = match field {
                        Field::Delta | Field::At => map.next_value::<Exact<'_>>()?.0,
                        Field::Namespace | Field::Key | Field::Id => map.next_value()?,
                    };
                    if draft.slot(field).replace(value).is_some() {
                        findings.fault(place, Some(field.as_str()), || {
                            "is given more than once".into()
                        });
                        is_sound = false;
                    }
                }
                Name::Unknown(name) => {
                    map.next_value::<IgnoredAny>()?;
                    findings.fault(place, Some(&name), || {
                        "is unknown: an increment has namespace, key, delta, at and id".into()
                    });
                    is_sound = false;
                }
            }
        }
        if let Some(item) = draft.finish(findings, place)
            && is_sound
        {
            findings.items.push(item);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        self.not_an_object("an array")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.not_an_object("null")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.not_an_object("a boolean")
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.not_an_object("a number")
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.not_an_object("a number")
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.not_an_object("a number")
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.not_an_object("a string")
    }
}

#[derive(Clone, Copy)]
enum Field {
    Namespace,
    Key,
    Delta,
    At,
    Id,
}

impl Field {
    fn as_str(self) -> &'static str {
        match self {
            Field::Namespace => "namespace",
            Field::Key => "key",
            Field::Delta => "delta",
            Field::At => "at",
            Field::Id => "id",
        }
    }
}

enum Name {
    Known(Field),
    /// The beginning of it.
    Unknown(String),
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        struct AnyName;

        impl Visitor<'_> for AnyName {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
                Ok(match name {
                    "namespace" => Name::Known(Field::Namespace),
                    "key" => Name::Known(Field::Key),
                    "delta" => Name::Known(Field::Delta),
                    "at" => Name::Known(Field::At),
                    "id" => Name::Known(Field::Id),
                    other => Name::Unknown(other.chars().take(SHOWN_NAME_CHARS).collect()),
                })
            }
        }

        deserializer.deserialize_identifier(AnyName)
    }
}

/// Absent and null are the same.
fn given(value: Option<Value<'_>>) -> Option<Value<'_>> {
    value.filter(|value| !matches!(value, Value::Null))
}

/// What an object gives, not checked yet.
#[derive(Default)]
struct Draft<'a> {
    namespace: Option<Value<'a>>,
    key: Option<Value<'a>>,
    delta: Option<Value<'a>>,
    at: Option<Value<'a>>,
    id: Option<Value<'a>>,
}

impl<'a> Draft<'a> {
    fn slot(&mut self, field: Field) -> &mut Option<Value<'a>> {
        match field {
            Field::Namespace => &mut self.namespace,
            Field::Key => &mut self.key,
            Field::Delta => &mut self.delta,
            Field::At => &mut self.at,
            Field::Id => &mut self.id,
        }
    }

    /// The item, or every fault that its fields have.
    fn finish(self, findings: &mut Findings<'a>, place: ItemPlace) -> Option<Item<'a>> {
        let rules = findings.rules;
        let mut check =
            |field: Field, reason: String| findings.fault(place, Some(field.as_str()), || reason);
        let namespace = fields::required_text(self.namespace)
            .and_then(|text| check_namespace(&text).map(|()| text).map_err(|e| e.to_string()))
            .map_err(|reason| check(Field::Namespace, reason));
        let key = fields::required_text(self.key)
            .and_then(|text| check_name(&text).map(|()| text).map_err(|e| e.to_string()))
            .map_err(|reason| check(Field::Key, reason));
        let delta = given(self.delta)
            .map_or(Ok(1), |value| fields::delta(&value))
            .map_err(|reason| check(Field::Delta, reason));
        let at_ms = given(self.at)
            .map_or(Ok(rules.now_ms), |value| fields::at_ms(&value))
            .and_then(|at_ms| fields::at(at_ms, rules).map(|()| at_ms))
            .map_err(|reason| check(Field::At, reason));
        let id = fields::optional_text(self.id)
            .and_then(|id| {
                id.as_deref().map_or(Ok(()), check_name).map(|()| id).map_err(|e| e.to_string())
            })
            .map_err(|reason| check(Field::Id, reason));
        match (namespace, key, delta, at_ms, id) {
            (Ok(namespace), Ok(key), Ok(delta), Ok(at_ms), Ok(id)) => {
                Some(Item { namespace, key, delta, at_ms, id })
            }
            _ => None,
        }
    }
}
