//! Writers by another schema than Tally's own: they are read by Avro's rules, with what the
//! registry has.

use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use serde_json::json;
use tally_platform::registry::Registry;
use tally_schemas::wire;

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::installation::Installation;
use crate::model::{Event, Model};
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
