//! What our encoders write, apache-avro reads, and the other way round, byte for byte.

use apache_avro::types::Value;
use proptest::prelude::*;
use tally_schemas::{BatchEncoder, Plan, avsc, encode};

use crate::dice::Dice;
use crate::evolved::Owned;
use crate::oracle;

fn increments() -> impl Strategy<Value = Vec<Owned>> {
    (any::<u64>(), 0..70_usize).prop_map(|(seed, count)| {
        let mut dice = Dice(seed);
        (0..count).map(|_| Owned::random(&mut dice)).collect()
    })
}

fn optional_text(given: Option<&str>) -> Value {
    match given {
        None => Value::Union(0, Box::new(Value::Null)),
        Some(text) => Value::Union(1, Box::new(text.into())),
    }
}

fn value(increment: &Owned) -> Value {
    Value::Record(vec![
        ("namespace".into(), increment.namespace.as_str().into()),
        ("key".into(), increment.key.as_str().into()),
        ("delta".into(), Value::Long(increment.delta)),
        ("at".into(), Value::TimestampMillis(increment.at_ms)),
        ("id".into(), optional_text(increment.id.as_deref())),
    ])
}

proptest! {
    #[test]
    fn an_increment_is_written_as_apache_avro_writes_it(seed: u64) {
        let increment = Owned::random(&mut Dice(seed));
        let mut body = Vec::new();
        encode::increment(&mut body, &increment.borrowed());
        prop_assert_eq!(&body, &oracle::write(avsc::INCREMENT, value(&increment)));
        let theirs = oracle::read(avsc::INCREMENT, avsc::INCREMENT, &body).unwrap();
        prop_assert_eq!(oracle::increment(theirs), increment);
    }

    #[test]
    fn a_batch_is_written_as_apache_avro_writes_it(increments in increments(), id: Option<String>) {
        let mut encoder = BatchEncoder::new();
        for increment in &increments {
            encoder.push(&increment.borrowed());
        }
        prop_assert_eq!(encoder.count(), increments.len());
        let mut body = Vec::new();
        encoder.finish(&mut body, id.as_deref());

        let items = Value::Array(increments.iter().map(value).collect());
        let id_value = optional_text(id.as_deref());
        let batch = Value::Record(vec![("id".into(), id_value), ("increments".into(), items)]);
        prop_assert_eq!(&body, &oracle::write(avsc::INCREMENT_BATCH, batch));
        let theirs = oracle::read(avsc::INCREMENT_BATCH, avsc::INCREMENT_BATCH, &body).unwrap();
        prop_assert_eq!(oracle::batch(theirs), (id, increments));
    }

    /// A writer may cut an array into blocks as it likes, and say the blocks' sizes (as a negative
    /// count) or not.
    #[test]
    fn an_array_reads_the_same_however_it_is_cut_into_blocks(
        increments in increments(),
        seed: u64,
    ) {
        let mut dice = Dice(seed);
        let mut body = vec![0];
        let mut rest = increments.as_slice();
        while !rest.is_empty() {
            let (block, after) = rest.split_at(1 + dice.roll(rest.len().min(20)));
            rest = after;
            let mut items = Vec::new();
            for increment in block {
                encode::increment(&mut items, &increment.borrowed());
            }
            if dice.roll(2) == 0 {
                long(&mut body, block.len() as i64);
            } else {
                long(&mut body, -(block.len() as i64));
                long(&mut body, items.len() as i64);
            }
            body.extend_from_slice(&items);
        }
        body.push(0);

        let mut read = Vec::new();
        Plan::new(avsc::INCREMENT_BATCH).unwrap().decode_into(&body, &mut read).unwrap();
        prop_assert_eq!(&read.iter().map(Owned::from).collect::<Vec<_>>(), &increments);
        let theirs = oracle::read(avsc::INCREMENT_BATCH, avsc::INCREMENT_BATCH, &body).unwrap();
        prop_assert_eq!(oracle::batch(theirs), (None, increments));
    }
}

fn long(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&oracle::write(r#""long""#, Value::Long(value)));
}
