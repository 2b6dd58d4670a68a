//! What an evolved writer wrote is read as its author meant it, and as apache-avro resolves it.

use apache_avro::types::Value;
use proptest::prelude::*;
use tally_schemas::{Message, MessageType, Plan, avsc};

use crate::dice::Dice;
use crate::evolved::{Owned, batch_writer, increment_writer};
use crate::oracle;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_increment_of_any_writer_is_read_as_it_was_meant(writer in increment_writer(), seed: u64) {
        let schema = writer.text();
        let plan = Plan::new(&schema).unwrap();
        prop_assert_eq!(plan.message_type(), MessageType::Increment);
        let mut dice = Dice(seed);
        for _ in 0..4 {
            let (value, expected) = writer.value(&mut dice);
            let body = oracle::write(&schema, value);

            let mut increments = Vec::new();
            let message = plan.decode_into(&body, &mut increments).unwrap();
            prop_assert_eq!(message, Message { id: None, increments: 1 });
            let owned: Vec<_> = increments.iter().map(Owned::from).collect();
            prop_assert_eq!(owned, vec![expected.clone()]);

            let theirs = oracle::read(&schema, avsc::INCREMENT, &body).unwrap();
            prop_assert_eq!(oracle::increment(theirs), expected);
        }
    }

    #[test]
    fn a_batch_of_any_writer_is_read_as_it_was_meant(writer in batch_writer(), seed: u64) {
        let schema = writer.text();
        let plan = Plan::new(&schema).unwrap();
        prop_assert_eq!(plan.message_type(), MessageType::IncrementBatch);
        let mut dice = Dice(seed);
        for _ in 0..4 {
            let (value, id, expected) = writer.value(&mut dice);
            let body = oracle::write(&schema, value);

            let mut increments = Vec::new();
            let message = plan.decode_into(&body, &mut increments).unwrap();
            let count = expected.len() as u64;
            prop_assert_eq!(message, Message { id: id.as_deref(), increments: count });
            prop_assert_eq!(&increments.iter().map(Owned::from).collect::<Vec<_>>(), &expected);

            let theirs = oracle::read(&schema, avsc::INCREMENT_BATCH, &body).unwrap();
            prop_assert_eq!(oracle::batch(theirs), (id, expected));
        }
    }

    #[test]
    fn a_cut_message_gives_nothing(writer in batch_writer(), seed: u64, at: prop::sample::Index) {
        let schema = writer.text();
        let plan = Plan::new(&schema).unwrap();
        let body = oracle::write(&schema, writer.value(&mut Dice(seed)).0);
        let mut increments = Vec::new();
        let error = plan.decode_into(&body[..at.index(body.len())], &mut increments).unwrap_err();
        prop_assert!(increments.is_empty(), "{error}: {increments:?}");

        let longer = [body.as_slice(), &[0]].concat();
        let error = plan.decode_into(&longer, &mut increments).unwrap_err();
        prop_assert_eq!(error.position, body.len());
        prop_assert!(increments.is_empty(), "{error}: {increments:?}");
    }
}

/// Kept from growing apart: the increment in the batch's schema is the increment's schema.
#[test]
fn the_increment_within_the_batch_is_the_increment() {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let (single, batch) = (json(avsc::INCREMENT), json(avsc::INCREMENT_BATCH));
    let within = &batch["fields"][1]["type"]["items"];
    assert_eq!(within["name"], single["name"]);
    assert_eq!(within["namespace"], single["namespace"]);
    assert_eq!(within["fields"], single["fields"]);
}

#[test]
fn every_field_of_every_schema_is_documented() {
    fn check(json: &serde_json::Value, path: &str) -> usize {
        match json {
            serde_json::Value::Object(object) => {
                let field = object.contains_key("name");
                let path =
                    if field { format!("{path}.{}", object["name"]) } else { path.to_owned() };
                assert!(
                    !field || object["doc"].as_str().is_some_and(|doc| doc.len() > 20),
                    "{path}"
                );
                usize::from(field) + object.values().map(|value| check(value, &path)).sum::<usize>()
            }
            serde_json::Value::Array(values) => values.iter().map(|value| check(value, path)).sum(),
            _ => 0,
        }
    }
    for (schema, documented) in
        [(avsc::INCREMENT, 6), (avsc::INCREMENT_BATCH, 9), (avsc::DELTA_BATCH, 18)]
    {
        assert_eq!(check(&serde_json::from_str(schema).unwrap(), ""), documented);
    }
}

#[test]
fn micros_are_read_as_millis() {
    let schema = avsc::INCREMENT.replace("timestamp-millis", "timestamp-micros");
    let plan = Plan::new(&schema).unwrap();
    for (micros, millis) in [(1_700_000_000_123_456, 1_700_000_000_123), (-1, -1), (999, 0)] {
        let value = Value::Record(vec![
            ("namespace".into(), "n".into()),
            ("key".into(), "k".into()),
            ("delta".into(), Value::Long(1)),
            ("at".into(), Value::TimestampMicros(micros)),
            ("id".into(), Value::Union(0, Box::new(Value::Null))),
        ]);
        let body = oracle::write(&schema, value);
        let mut at_ms = None;
        plan.decode(&body, |increment| at_ms = Some(increment.at_ms)).unwrap();
        assert_eq!(at_ms, Some(millis));
    }
}
