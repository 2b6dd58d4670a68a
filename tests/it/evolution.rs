//! Writers by another schema than Tally's own, of increments and of deltas: they are read by Avro's
//! rules, with what the registry has.

use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::json;
use tally_platform::registry::Registry;
use tally_schemas::{Delta, DeltaBatchHeader, avsc, wire};

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::forger::{Forger, header};
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::reading::{log_end, read, total};
use crate::service::Service;

/// Fields in another order, one more that Tally does not know, and one fewer.
fn evolved_increment() -> serde_json::Value {
    json!({
        "type": "record", "namespace": "tally", "name": "Increment", "fields": [
            { "name": "at", "type": { "type": "long", "logicalType": "timestamp-millis" } },
            { "name": "note", "type": ["null", "string"], "default": null },
            { "name": "key", "type": "string" },
            { "name": "delta", "type": "long" },
            { "name": "namespace", "type": "string" },
        ]
    })
}

/// The schema of a batch of such increments, with deltas of 32 bits.
pub(crate) fn evolved_batch() -> serde_json::Value {
    let mut increment = evolved_increment();
    increment["fields"][3]["type"] = json!("int");
    json!({
        "type": "record", "namespace": "tally", "name": "IncrementBatch", "fields": [
            { "name": "origin", "type": "string" },
            { "name": "increments", "type": { "type": "array", "items": increment } },
        ]
    })
}

pub(crate) fn record(event: &Event, delta: Value) -> Value {
    let text = |text: &str| Value::String(text.to_owned());
    Value::Record(vec![
        ("at".into(), Value::TimestampMillis(event.at_ms)),
        ("note".into(), Value::Union(1, Box::new(text("for people")))),
        ("key".into(), text(&event.key)),
        ("delta".into(), delta),
        ("namespace".into(), text(&event.namespace)),
    ])
}

pub(crate) fn encode(id: u32, schema: &serde_json::Value, value: Value) -> Vec<u8> {
    let schema = Schema::parse(schema).expect("the schema is one");
    let writer = GenericDatumWriter::builder(&schema).build().expect("a writer of it");
    let body = writer.write_value_to_vec(value).expect("the value is by the schema");
    [wire::prefix(id).as_slice(), &body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evolved_writers_count_beside_those_of_today() {
    let tally = Installation::new("evolved").await;
    let registry = Registry::new(&tally.config.registry).expect("a client is made");
    let register = async |subject: String, schema: &serde_json::Value| {
        registry
            .register(&subject, &schema.to_string())
            .await
            .expect("the registry takes the schema")
    };
    let source = tally.source().await;
    let (single, batch) = (evolved_increment(), evolved_batch());
    let single_id = register(format!("{}-value", tally.config.kafka.increments), &single).await;
    // The aggregator goes by the id, whatever the subject.
    let batch_id = register(format!("{}-batches", tally.config.kafka.increments), &batch).await;
    let own = [source.increment_schema, source.batch_schema];
    assert!(
        !own.contains(&single_id) && !own.contains(&batch_id),
        "schemas of their own have ids of their own"
    );

    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    let events = random_events(&mut Dice(5), 600);
    for (number, events) in events.chunks(6).enumerate() {
        let partition = i32::try_from(number).expect("few") % source.partitions();
        source.single(partition, &events[0]).await;
        source.batch(partition, &events[1..3]).await;
        let value = record(&events[3], Value::Long(events[3].delta));
        source.send(partition, Some(&encode(single_id, &single, value))).await;
        let int = |event: &Event| Value::Int(i32::try_from(event.delta).expect("deltas are small"));
        let items = events[4..].iter().map(|event| record(event, int(event))).collect();
        let value = Value::Record(vec![
            ("origin".into(), Value::String(String::from("elsewhere"))),
            ("increments".into(), Value::Array(items)),
        ]);
        source.send(partition, Some(&encode(batch_id, &batch, value))).await;
    }
    let mut model = Model::default();
    model.add_all(&events);
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
}

/// The schema of a later version's delta batches: one field more before the others, one more within
/// each delta, and one more at the end.
fn later_delta_batch() -> serde_json::Value {
    let mut schema: serde_json::Value =
        serde_json::from_str(avsc::DELTA_BATCH).expect("our schema is JSON");
    let fields = schema["fields"].as_array_mut().expect("a record has fields");
    let delta = fields[10]["type"]["items"]["fields"].as_array_mut().expect("so has a delta");
    delta.insert(2, json!({ "name": "unit", "type": ["null", "string"], "default": null }));
    fields.insert(0, json!({ "name": "writer", "type": "string", "default": "" }));
    fields.push(json!({ "name": "marks", "type": "int", "default": 0 }));
    schema
}

fn later_value(header: &DeltaBatchHeader<'_>, deltas: &[Delta<'_>]) -> Value {
    let text = |text: &str| Value::String(text.to_owned());
    let count = |count: u64| Value::Long(count.cast_signed());
    let delta = |delta: &Delta<'_>| {
        Value::Record(vec![
            ("namespace".into(), text(delta.namespace)),
            ("key".into(), text(delta.key)),
            ("unit".into(), Value::Union(1, Box::new(text("likes")))),
            ("bucket".into(), Value::Long(delta.bucket_s.into())),
            ("sum".into(), Value::Long(delta.sum)),
            ("events".into(), Value::Long(delta.events)),
        ])
    };
    Value::Record(vec![
        ("writer".into(), text("a later version")),
        ("topic_id".into(), text(header.topic_id)),
        ("partition".into(), Value::Int(header.partition)),
        ("from".into(), Value::Long(header.from)),
        ("to".into(), Value::Long(header.to)),
        ("counted".into(), count(header.counted)),
        ("duplicate".into(), count(header.duplicate)),
        ("rejected".into(), count(header.rejected)),
        ("increments".into(), count(header.increments)),
        ("fingerprint".into(), count(header.fingerprint)),
        ("correction".into(), Value::Boolean(header.correction)),
        ("deltas".into(), Value::Array(deltas.iter().map(delta).collect())),
        ("marks".into(), Value::Int(3)),
    ])
}

/// A later version has counted the first messages, and this one goes on from there, as in a rolling
/// upgrade that is taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delta_batches_of_a_later_version_are_read_and_followed() {
    let mut tally = Installation::new("later").await;
    tally.allow("the group's committed offset is gone from Kafka");
    let mut reader = tally.start(Service::Reader, "a");
    reader.ready().await;
    let source = tally.source().await;
    let events = random_events(&mut Dice(15), 40);
    for event in &events {
        source.single(0, event).await;
    }
    let mut model = Model::default();
    model.add_all(&events);

    let later = later_delta_batch();
    let registry = Registry::new(&tally.config.registry).expect("a client is made");
    let subject = format!("{}-value", tally.config.kafka.deltas);
    let schema = registry.register(&subject, &later.to_string()).await.expect("it is compatible");
    let forger = Forger::new(&tally.config).await;
    let deltas: Vec<Delta<'_>> = model
        .cells()
        .iter()
        .map(|((namespace, key, bucket_s), (sum, events))| Delta {
            namespace,
            key,
            bucket_s: *bucket_s,
            sum: i64::try_from(*sum).expect("few and small"),
            events: *events,
        })
        .collect();
    let to = i64::try_from(events.len()).expect("few");
    let header = DeltaBatchHeader { counted: events.len() as u64, ..header(0, 0, to) };
    let value = later_value(&forger.sound(header, &deltas), &deltas);
    forger.delta_message(0, &encode(schema, &later, value)).await;

    let mut sink = tally.start(Service::Sink, "a");
    tally.prove(&model).await;
    let Event { namespace, key, .. } = &events[0];
    let after = format!("after={}", log_end(&tally).await);
    let answer = read(&reader, namespace, key, &after).await;
    let expected = model.counters()[&(namespace.as_str(), key.as_str())];
    assert_eq!(total(&answer), expected, "{answer}");

    let mut aggregator = tally.start(Service::Aggregator, "a");
    source.batch(0, &events).await;
    model.add_all(&events);
    tally.prove(&model).await;
    for service in [&mut reader, &mut sink, &mut aggregator] {
        service.terminate().await;
    }
}
