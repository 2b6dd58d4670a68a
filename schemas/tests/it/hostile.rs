//! Bytes that nobody wrote: never a panic, never a long loop, never a part of a message.

use proptest::prelude::*;
use tally_schemas::{DeltaBatch, Increment, Plan, avsc};

use crate::deltas::batches;
use crate::dice::Dice;
use crate::evolved::{BatchWriter, Owned, batch_writer, increment_writer};
use crate::oracle;

/// Decodes behind an increment that must stay, whatever comes after it. Gives what the body was
/// read as.
fn decode(plan: &Plan, body: &[u8]) -> Option<Vec<Owned>> {
    let before = Increment { namespace: "", key: "before", delta: 1, at_ms: 0, id: None };
    let mut increments = vec![before];
    let decoded = plan.decode_into(body, &mut increments);
    assert_eq!(increments[0], before);
    match decoded {
        Ok(message) => {
            assert_eq!(increments.len() as u64, 1 + message.increments);
            Some(increments[1..].iter().map(Owned::from).collect())
        }
        Err(error) => {
            assert_eq!(increments.len(), 1, "{error}");
            assert!(error.position <= body.len(), "{error}");
            None
        }
    }
}

/// Flips some bits.
fn damage(body: &mut [u8], seed: u64) {
    let mut dice = Dice(seed);
    for _ in 0..=dice.roll(3) {
        let at = dice.roll(body.len());
        body[at] ^= 1 << dice.roll(8);
    }
}

fn written(writer: &BatchWriter, seed: u64) -> Vec<u8> {
    oracle::write(&writer.text(), writer.value(&mut Dice(seed)).0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn garbage_is_read_whole_or_not_at_all(
        single in increment_writer(),
        batch in batch_writer(),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        decode(&Plan::new(&single.text()).unwrap(), &body);
        decode(&Plan::new(&batch.text()).unwrap(), &body);
        decode(&Plan::new(avsc::INCREMENT).unwrap(), &body);
        decode(&Plan::new(avsc::INCREMENT_BATCH).unwrap(), &body);
        if let Ok(batch) = DeltaBatch::decode(&body) {
            prop_assert!(batch.deltas.count() <= body.len());
        }
    }

    #[test]
    fn a_damaged_batch_is_read_whole_or_not_at_all(writer in batch_writer(), seed: u64) {
        let mut body = written(&writer, seed);
        damage(&mut body, !seed);
        decode(&Plan::new(&writer.text()).unwrap(), &body);
    }

    /// Where we accept a damaged message, it has to be one: apache-avro reads the same from it.
    #[test]
    fn damage_is_read_as_apache_avro_reads_it_or_refused(seed: u64) {
        let mut body = Vec::new();
        let mut encoder = tally_schemas::BatchEncoder::new();
        let mut dice = Dice(seed);
        for _ in 0..dice.roll(4) {
            encoder.push(&Owned::random(&mut dice).borrowed());
        }
        encoder.finish(&mut body, None);
        damage(&mut body, !seed);
        if let Some(ours) = decode(&Plan::new(avsc::INCREMENT_BATCH).unwrap(), &body) {
            let theirs = oracle::read(avsc::INCREMENT_BATCH, avsc::INCREMENT_BATCH, &body).unwrap();
            prop_assert_eq!(ours, oracle::batch(theirs).1);
        }
    }

    #[test]
    fn a_damaged_delta_batch_ends(batch in batches(), seed: u64) {
        let mut body = batch.body();
        damage(&mut body, seed);
        if let Ok(batch) = DeltaBatch::decode(&body) {
            prop_assert!(batch.deltas.count() <= body.len());
        }
    }

    #[test]
    fn a_damaged_schema_makes_a_plan_or_an_error(writer in batch_writer(), seed: u64) {
        let mut schema = writer.text().into_bytes();
        damage(&mut schema, seed);
        let Ok(schema) = std::str::from_utf8(&schema) else { return Ok(()) };
        if let Ok(plan) = Plan::new(schema) {
            decode(&plan, &written(&writer, seed));
        }
    }
}

/// Records that double at every level: 2^40 of them in a value, and no byte to bound the work by.
/// Going through them would take days.
#[test]
fn a_schema_that_doubles_without_taking_bytes_costs_nothing() {
    let mut doubling =
        r#"{"type":"record","name":"D0","fields":[{"name":"n","type":"null"}]}"#.to_owned();
    for level in 1..=40 {
        let below = level - 1;
        doubling = format!(
            r#"{{"type":"record","name":"D{level}",
                "fields":[{{"name":"a","type":{doubling}}},{{"name":"b","type":"D{below}"}}]}}"#
        );
    }
    let item = r#"{"type":"record","name":"I",
        "fields":[{"name":"d","type":"D40"},{"name":"i","type":"int"}]}"#;
    let extra = format!(
        r#""fields": [{{"name":"d","type":{doubling}}},
        {{"name":"none","type":{{"type":"array","items":"D40"}}}},
        {{"name":"some","type":{{"type":"array","items":{item}}}}},"#
    );
    let plan = Plan::new(&avsc::INCREMENT.replacen(r#""fields": ["#, &extra, 1)).unwrap();
    // One array: a block of i64::MAX items, and the end. The other: two ints, and the end.
    let mut body = vec![0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0];
    body.extend_from_slice(&[4, 1, 1, 0]);
    tally_schemas::encode::increment(
        &mut body,
        &Increment { namespace: "n", key: "k", delta: 1, at_ms: 2, id: None },
    );
    assert_eq!(decode(&plan, &body).map(|read| read.len()), Some(1));
}
