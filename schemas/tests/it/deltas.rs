//! Delta batches, ours and apache-avro's, both ways.

use apache_avro::types::Value;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tally_schemas::{Delta, DeltaBatch, DeltaBatchHeader, DeltaBatchPlan, avsc, delta_batch};

use crate::dice::Dice;
use crate::oracle;

#[derive(Clone, Debug)]
pub(crate) struct Batch {
    topic_id: String,
    header: DeltaBatchHeader<'static>,
    deltas: Vec<(String, String, u32, i64, i64)>,
}

pub(crate) fn batches() -> impl Strategy<Value = Batch> {
    (any::<u64>(), 0..70_usize).prop_map(|(seed, count)| {
        let mut dice = Dice(seed);
        let header = DeltaBatchHeader {
            topic_id: "",
            partition: dice.int(),
            from: dice.long(),
            to: dice.long(),
            counted: dice.bits() >> 1,
            duplicate: dice.bits() >> 40,
            rejected: dice.bits() >> 60,
            increments: i64::MAX.cast_unsigned(),
            fingerprint: dice.bits(),
            correction: dice.roll(2) == 1,
        };
        let deltas = (0..count)
            .map(|_| (dice.text(), dice.text(), dice.bits() as u32, dice.long(), dice.long()))
            .collect();
        Batch { topic_id: dice.text(), header, deltas }
    })
}

impl Batch {
    fn header(&self) -> DeltaBatchHeader<'_> {
        DeltaBatchHeader { topic_id: &self.topic_id, ..self.header }
    }

    fn deltas(&self) -> impl ExactSizeIterator<Item = Delta<'_>> {
        self.deltas.iter().map(|(namespace, key, bucket_s, sum, events)| Delta {
            namespace,
            key,
            bucket_s: *bucket_s,
            sum: *sum,
            events: *events,
        })
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        delta_batch::encode(&mut body, &self.header(), self.deltas());
        body
    }

    fn value(&self) -> Value {
        let count = |count: u64| Value::Long(i64::try_from(count).unwrap());
        let deltas = self.deltas().map(|delta| {
            Value::Record(vec![
                ("namespace".into(), delta.namespace.into()),
                ("key".into(), delta.key.into()),
                ("bucket".into(), Value::Long(delta.bucket_s.into())),
                ("sum".into(), Value::Long(delta.sum)),
                ("events".into(), Value::Long(delta.events)),
            ])
        });
        let header = self.header();
        Value::Record(vec![
            ("topic_id".into(), header.topic_id.into()),
            ("partition".into(), Value::Int(header.partition)),
            ("from".into(), Value::Long(header.from)),
            ("to".into(), Value::Long(header.to)),
            ("counted".into(), count(header.counted)),
            ("duplicate".into(), count(header.duplicate)),
            ("rejected".into(), count(header.rejected)),
            ("increments".into(), count(header.increments)),
            ("fingerprint".into(), Value::Long(header.fingerprint.cast_signed())),
            ("correction".into(), Value::Boolean(header.correction)),
            ("deltas".into(), Value::Array(deltas.collect())),
        ])
    }
}

proptest! {
    #[test]
    fn a_delta_batch_is_written_as_apache_avro_writes_it(batch in batches()) {
        let body = batch.body();
        prop_assert_eq!(&body, &oracle::write(avsc::DELTA_BATCH, batch.value()));
        let theirs = oracle::read(avsc::DELTA_BATCH, avsc::DELTA_BATCH, &body).unwrap();
        prop_assert_eq!(theirs, batch.value());
    }

    #[test]
    fn a_delta_batch_reads_back(batch in batches()) {
        let body = batch.body();
        let read = DeltaBatch::decode(&body).unwrap();
        prop_assert_eq!(read.header, batch.header());
        prop_assert_eq!(read.deltas.announced(), batch.deltas.len());
        let deltas = read.deltas.collect::<Result<Vec<_>, _>>().unwrap();
        prop_assert_eq!(deltas, batch.deltas().collect::<Vec<_>>());
    }

    #[test]
    fn a_deltas_size_is_foretold(batch in batches()) {
        let mut header_only = Vec::new();
        delta_batch::encode(&mut header_only, &batch.header(), std::iter::empty());
        let deltas: usize = batch.deltas().map(|delta| delta.encoded_bytes()).sum();
        let count = match batch.deltas.len() {
            0 => 0,
            1..64 => 1,
            _ => 2,
        };
        prop_assert_eq!(batch.body().len(), header_only.len() + count + deltas);
    }

    #[test]
    fn a_cut_delta_batch_ends_in_an_error(batch in batches(), at: prop::sample::Index) {
        let body = batch.body();
        let read = |body: &[u8]| {
            DeltaBatch::decode(body)?.deltas.try_for_each(|delta| delta.map(drop))
        };
        prop_assert_eq!(read(&body), Ok(()));
        let cut = at.index(body.len());
        prop_assert!(read(&body[..cut]).is_err());
        let longer = [body.as_slice(), &[0]].concat();
        prop_assert_eq!(read(&longer).unwrap_err().position, body.len());
    }
}

/// A field that a later version might add, and a random value of it.
type Addition = (Json, fn(&mut Dice) -> Value);

fn additions() -> [Addition; 3] {
    [
        (json!({ "name": "note", "type": ["null", "string"] }), |dice| match dice.roll(2) {
            0 => Value::Union(0, Box::new(Value::Null)),
            _ => Value::Union(1, Box::new(dice.text().into())),
        }),
        (json!({ "name": "high", "type": "long" }), |dice| Value::Long(dice.long())),
        (json!({ "name": "marks", "type": { "type": "array", "items": "int" } }), |dice| {
            Value::Array((0..dice.roll(3)).map(|_| Value::Int(dice.int())).collect())
        }),
    ]
}

/// Shuffles a record's fields and adds some; gives the places of the fields: of ours, or of an
/// addition.
fn evolve(fields: &mut Vec<Json>, dice: &mut Dice) -> Vec<Result<usize, usize>> {
    let mut places: Vec<Result<usize, usize>> = (0..fields.len()).map(Ok).collect();
    places.extend((0..additions().len()).filter(|_| dice.roll(2) == 0).map(Err));
    for at in (1..places.len()).rev() {
        places.swap(at, dice.roll(at + 1));
    }
    let ours = std::mem::take(fields);
    *fields = places
        .iter()
        .map(|place| match place {
            Ok(ours_at) => ours[*ours_at].clone(),
            Err(added) => additions()[*added].0.clone(),
        })
        .collect();
    places
}

fn arranged(record: Value, places: &[Result<usize, usize>], dice: &mut Dice) -> Value {
    let Value::Record(ours) = record else { panic!("a record, not {record:?}") };
    let field = |place: &Result<usize, usize>| match place {
        Ok(at) => ours[*at].clone(),
        Err(added) => {
            let (schema, value) = &additions()[*added];
            (schema["name"].as_str().unwrap().to_owned(), value(dice))
        }
    };
    Value::Record(places.iter().map(field).collect())
}

proptest! {
    #[test]
    fn a_batch_of_another_version_becomes_ours(
        batch in batches(), seed: u64, cut: prop::sample::Index,
    ) {
        let mut dice = Dice(seed);
        let mut schema: Json = serde_json::from_str(avsc::DELTA_BATCH).unwrap();
        let items = schema["fields"][10]["type"]["items"]["fields"].as_array_mut().unwrap();
        let of_delta = evolve(items, &mut dice);
        let of_batch = evolve(schema["fields"].as_array_mut().unwrap(), &mut dice);

        let Value::Record(mut fields) = batch.value() else { panic!("a batch is a record") };
        let Value::Array(deltas) = &mut fields[10].1 else { panic!("deltas are an array") };
        for delta in deltas {
            *delta = arranged(delta.clone(), &of_delta, &mut dice);
        }
        let value = arranged(Value::Record(fields), &of_batch, &mut dice);
        let theirs = oracle::write(&schema.to_string(), value);

        let plan = DeltaBatchPlan::new(&schema.to_string()).unwrap();
        let ours = plan.to_ours(&theirs).unwrap();
        prop_assert_eq!(&ours, &batch.body());
        prop_assert!(ours.len() <= theirs.len() + 1);
        prop_assert!(plan.to_ours(&theirs[..cut.index(theirs.len())]).is_err());
    }
}

#[test]
fn our_own_batches_are_not_copied() {
    let plan = DeltaBatchPlan::new(avsc::DELTA_BATCH).unwrap();
    let body = [1, 2, 3];
    assert!(matches!(plan.to_ours(&body), Ok(std::borrow::Cow::Borrowed(_))));
}

#[test]
fn a_writer_without_corrections_has_none() {
    let mut schema: Json = serde_json::from_str(avsc::DELTA_BATCH).unwrap();
    let correction = schema["fields"].as_array_mut().unwrap().remove(9);
    assert_eq!(correction["name"], "correction");
    let header = DeltaBatchHeader {
        topic_id: "t",
        partition: 1,
        from: 2,
        to: 3,
        counted: 1,
        duplicate: 0,
        rejected: 0,
        increments: 0,
        fingerprint: 0,
        correction: false,
    };
    let mut ours = Vec::new();
    delta_batch::encode(&mut ours, &header, std::iter::empty());
    let mut theirs = ours.clone();
    assert_eq!(theirs.remove(ours.len() - 2), 0, "the boolean");
    let plan = DeltaBatchPlan::new(&schema.to_string()).unwrap();
    assert_eq!(plan.to_ours(&theirs).unwrap(), ours);
}

#[test]
fn what_is_no_batch_of_deltas_is_refused_by_name() {
    let ours: Json = serde_json::from_str(avsc::DELTA_BATCH).unwrap();
    let refusal = |schema: &Json| match DeltaBatchPlan::new(&schema.to_string()) {
        Ok(_) => panic!("{schema} makes a plan"),
        Err(error) => error.to_string(),
    };
    assert_eq!(
        refusal(&json!("string")),
        "the schema is string; a batch of deltas is a record DeltaBatch"
    );
    let mut lacks = ours.clone();
    lacks["fields"].as_array_mut().unwrap().remove(2);
    assert_eq!(
        refusal(&lacks),
        "DeltaBatch needs the field `from`, which the writer's record lacks"
    );
    let mut other = ours.clone();
    other["fields"][10]["type"]["items"]["fields"][3]["type"] = json!("double");
    assert_eq!(refusal(&other), "`sum` of Delta cannot be read as a long from the writer's double");
    let mut flat = ours;
    flat["fields"][10]["type"]["items"] = json!("long");
    assert_eq!(
        refusal(&flat),
        "`deltas` of DeltaBatch cannot be read as an array of Delta from the writer's array of long"
    );
}
