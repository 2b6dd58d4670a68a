//! Delta batches, ours and apache-avro's, both ways.

use apache_avro::types::Value;
use proptest::prelude::*;
use tally_schemas::{Delta, DeltaBatch, DeltaBatchHeader, avsc, delta_batch};

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
