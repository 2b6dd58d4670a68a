//! The body of a query, read as it comes: whatever else is in it takes no memory.
//!
//! ```text
//!  {"counters": [{"namespace": …, "key": …}, …], "after": "…"}
//!      └─ Items: an array of Items, or something else ─► each item its counter, or its fault
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tally_counts::Position;

use super::{Error, Fault, Faults, OddCounter, Query, counter, position};
use crate::counter::Counter;
use crate::misses::MAX_COUNTERS;

/// The longest text of a position: some 50,000 partitions.
const MAX_POSITION_BYTES: usize = 1 << 20;

pub(super) fn read(body: &[u8]) -> Result<Query, Error> {
    let Body { counters, after, mut faults } =
        serde_json::from_slice(body).map_err(|error| Error::Malformed(error.to_string()))?;
    let mut all = Faults::default();
    faults.sort_by(|one, other| one.field.cmp(&other.field));
    all.extend(faults);
    let mut odd = BTreeMap::new();
    let counters = match counters {
        None => {
            all.push(Fault::new("counters", "missing"));
            Vec::new()
        }
        Some(Items::Other) => {
            all.push(Fault::new("counters", "not an array"));
            Vec::new()
        }
        Some(Items::Items { count, .. }) if !(1..=MAX_COUNTERS).contains(&count) => {
            let reason = format!("{count} items, but it has 1 to {MAX_COUNTERS}");
            all.push(Fault::new("counters", reason));
            Vec::new()
        }
        Some(Items::Items { items, .. }) => {
            let mut counters = Vec::with_capacity(items.len());
            for (item, named) in items.into_iter().enumerate() {
                match named.counter() {
                    Ok(Ok(counter)) => counters.push(counter),
                    Ok(Err(one)) => drop(odd.insert(item, one)),
                    Err(fault) => all.push(Fault { item: Some(item), ..fault }),
                }
            }
            counters
        }
    };
    all.or(Query { counters, odd, after })
}

#[derive(Default)]
struct Body {
    counters: Option<Items>,
    after: Position,
    /// Of the fields, as many as an answer lists and one more.
    faults: Vec<Fault>,
}

/// What stands where an array of counters belongs.
enum Items {
    Items { items: Vec<Item>, count: usize },
    Other,
}

/// What stands where a counter belongs.
enum Item {
    Named { namespace: Option<Text>, key: Option<Text>, unknown: Option<String> },
    Other,
}

/// What stands where a text belongs.
enum Text {
    Text(String),
    Other,
}

impl Item {
    /// `{"namespace": …, "key": …}`, and nothing else.
    fn counter(self) -> Result<Result<Counter, OddCounter>, Fault> {
        let Item::Named { namespace, key, unknown } = self else {
            return Err(Fault::new("counters", "not an object"));
        };
        if let Some(field) = unknown {
            return Err(Fault::new(&field, "unknown; there are `namespace` and `key`"));
        }
        let text = |field, text| match text {
            Some(Text::Text(text)) => Ok(text),
            Some(Text::Other) => Err(Fault::new(field, "not a string")),
            None => Err(Fault::new(field, "missing")),
        };
        let (namespace, key) = (text("namespace", namespace)?, text("key", key)?);
        Ok(counter(&namespace, &key).map_err(|fault| OddCounter { namespace, key, fault }))
    }
}

/// Visits whatever is not what belongs there.
macro_rules! visit_others {
    ($($visit:ident($type:ty)),*) => {
        $(
            fn $visit<E: de::Error>(self, _: $type) -> Result<Self::Value, E> {
                Ok(Self::Value::Other)
            }
        )*

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(Self::Value::Other)
        }
    };
}

fn skip_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

fn skip_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Body, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Body;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
                let mut body = Body::default();
                while let Some(field) = map.next_key::<String>()? {
                    let taken = match field.as_str() {
                        "counters" => {
                            body.counters = map.next_value()?;
                            Ok(())
                        }
                        // Null is as if it were not there.
                        "after" => match map.next_value()? {
                            None => Ok(()),
                            Some(Text::Text(text)) if text.len() > MAX_POSITION_BYTES => {
                                Err(format!("it has more than {MAX_POSITION_BYTES} bytes"))
                            }
                            Some(Text::Text(text)) => {
                                position(&text).map(|after| body.after = after)
                            }
                            Some(Text::Other) => Err("not a string".to_owned()),
                        },
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            Err("unknown; there are `counters` and `after`".to_owned())
                        }
                    };
                    if let Err(reason) = taken
                        && body.faults.len() <= super::MAX_FAULTS
                    {
                        body.faults.push(Fault::new(&field, reason));
                    }
                }
                Ok(body)
            }
        }

        from.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Items, D::Error> {
        struct Array;

        impl<'de> Visitor<'de> for Array {
            type Value = Items;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of counters")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items, A::Error> {
                let (mut items, mut count) = (Vec::new(), 0);
                while items.len() < MAX_COUNTERS
                    && let Some(item) = seq.next_element()?
                {
                    items.push(item);
                    count += 1;
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Items::Items { items, count })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Items, A::Error> {
                skip_map(map).map(|()| Items::Other)
            }

            visit_others!(
                visit_bool(bool),
                visit_i64(i64),
                visit_u64(u64),
                visit_f64(f64),
                visit_str(&str)
            );
        }

        from.deserialize_any(Array)
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Item, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a counter")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
                let (mut namespace, mut key, mut unknown) = (None, None, None);
                while let Some(field) = map.next_key::<String>()? {
                    match field.as_str() {
                        "namespace" => namespace = map.next_value()?,
                        "key" => key = map.next_value()?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            unknown.get_or_insert(field);
                        }
                    }
                }
                Ok(Item::Named { namespace, key, unknown })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Item, A::Error> {
                skip_seq(seq).map(|()| Item::Other)
            }

            visit_others!(
                visit_bool(bool),
                visit_i64(i64),
                visit_u64(u64),
                visit_f64(f64),
                visit_str(&str)
            );
        }

        from.deserialize_any(Object)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Text, D::Error> {
        struct OfText;

        impl<'de> Visitor<'de> for OfText {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Text, A::Error> {
                skip_seq(seq).map(|()| Text::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Text, A::Error> {
                skip_map(map).map(|()| Text::Other)
            }

            visit_others!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64));
        }

        from.deserialize_any(OfText)
    }
}
