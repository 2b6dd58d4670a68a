//! Messages that cannot be counted: each is rejected with its reason, accounted for, and those
//! around it count.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::ProgressBar;
use rdkafka::Message;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::util::Timeout;
use tally_counts::Reject;
use tally_platform::store;
use tally_reconciler::VerifyOptions;
use tally_schemas::wire;

use crate::dice::Dice;
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::service::Service;
use crate::topics;

const AT_MS: i64 = 1_780_000_000_000;
const DAY_MS: i64 = 86_400_000;
pub(crate) const NO_SUCH_SCHEMA: u32 = 1_999_999_999;

struct Poison {
    reason: Reject,
    payload: Option<Vec<u8>>,
}

/// Sends each poison between good messages, one partition after the other, and checks what became
/// of all.
async fn expect_rejected(tally: &Installation, poisons: Vec<Poison>) {
    let source = tally.source().await;
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    let mut model = Model::default();
    let mut sent: BTreeMap<(i32, i64), Poison> = BTreeMap::new();
    for (number, poison) in poisons.into_iter().enumerate() {
        let partition = i32::try_from(number).expect("few") % source.partitions();
        let good: Vec<Event> = (0..4)
            .map(|n| Event::new("good", &format!("{number}"), n + 1, AT_MS + n * 40_000))
            .collect();
        source.batch(partition, &good[..3]).await;
        let offset = source.send(partition, poison.payload.as_deref()).await;
        source.single(partition, &good[3]).await;
        model.add_all(&good);
        sent.insert((partition, offset), poison);
    }
    let verified = tally.prove(&model).await;

    let rejected = topics::messages(&tally.config.kafka, &tally.config.kafka.rejected).await;
    assert_eq!(rejected.len(), sent.len(), "one rejected message each");
    for message in &rejected {
        let text = |name| {
            topics::header(message, name)
                .unwrap_or_else(|| panic!("{name} is missing: {message:?}"))
        };
        let number =
            |name| text(name).parse::<i64>().unwrap_or_else(|_| panic!("{name}: {message:?}"));
        let partition = i32::try_from(number("tally.partition")).expect("a partition");
        let poison =
            sent.get(&(partition, number("tally.offset"))).expect("a message that was sent");
        assert_eq!(text("tally.reason"), poison.reason.as_str(), "{}", text("tally.detail"));
        assert_eq!(text("tally.topic"), tally.config.kafka.increments);
        assert_eq!(message.payload(), poison.payload.as_deref(), "the original bytes");
    }

    let ends = topics::ends(&tally.config.kafka, &tally.config.kafka.increments).await;
    let ledgers = store::ledgers(tally.store()).await.expect("the ledger can be read");
    for (partition, end) in (0..).zip(ends).filter(|(_, end)| *end > 0) {
        let ledger = &ledgers[&partition];
        let poisoned = sent.keys().filter(|(of, _)| *of == partition).count();
        assert_eq!(ledger.rejected, i64::try_from(poisoned).expect("few"), "partition {partition}");
        assert_eq!(
            ledger.counted + ledger.duplicate + ledger.rejected,
            end,
            "partition {partition}: {ledger:?}"
        );
        let row = verified
            .lines()
            .find(|line| cells(line).first() == Some(&partition.to_string().as_str()));
        let row = cells(row.expect("a row for each partition"));
        assert_eq!(row[7], poisoned.to_string(), "the report's `+ rejected`: {row:?}");
    }
    let mut by_reason: BTreeMap<&str, f64> = BTreeMap::new();
    for poison in sent.values() {
        *by_reason.entry(poison.reason.as_str()).or_default() += 1.0;
    }
    for (reason, count) in by_reason {
        let label = format!("reason=\"{reason}\"");
        let told = services[0].metric("tally_aggregator_rejected_total", &label).await;
        assert_eq!(told, Ok(count), "{reason}");
    }
    for service in &mut services {
        service.terminate().await;
    }
}

/// The cells of a line of the report's table.
fn cells(line: &str) -> Vec<&str> {
    line.split(['│', '┆']).map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_an_unknown_schema_are_rejected_and_those_around_them_count() {
    let tally = Installation::new("unknown_schema").await;
    let good = tally.source().await.encode_single(&Event::new("good", "lost", 1, AT_MS));
    let payload = [wire::prefix(NO_SUCH_SCHEMA).as_slice(), &good[wire::PREFIX_BYTES..]].concat();
    let poison = || Poison { reason: Reject::UnknownSchema, payload: Some(payload.clone()) };
    expect_rejected(&tally, vec![poison(), poison(), poison(), poison()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_poisoned_message_is_rejected_with_its_reason_and_those_around_it_count() {
    let tally = Installation::new("poisoned").await;
    let source = tally.source().await;
    let event = |namespace: &str, key: &str, delta, at_ms| Event::new(namespace, key, delta, at_ms);
    let single = |event: &Event| source.encode_single(event);
    let whole = single(&event("poison", "whole", 1, AT_MS));
    let batch =
        source.encode_batch(&[event("poison", "whole", 1, AT_MS), event("poison", "", 1, AT_MS)]);
    let long = "x".repeat(5_000);
    let tomorrow = jiff::Timestamp::now().as_millisecond() + DAY_MS;
    let poisons = [
        (Reject::NotFramed, Some(b"{\"namespace\": \"poison\"}".to_vec())),
        (Reject::NotFramed, Some(Vec::new())),
        (Reject::NotFramed, None),
        (Reject::NotFramed, Some(whole[..3].to_vec())),
        (Reject::Undecodable, Some(whole[..whole.len() - 4].to_vec())),
        (Reject::Undecodable, Some([whole.as_slice(), b"more"].concat())),
        (Reject::IncompatibleSchema, Some(wire::prefix(other_schema(&tally).await).to_vec())),
        (Reject::ReservedNamespace, Some(single(&event("__tally", "deltas", 1, AT_MS)))),
        (Reject::NameOutOfRange, Some(batch)),
        (Reject::NameOutOfRange, Some(single(&event("poison", &long, 1, AT_MS)))),
        (Reject::EventTimeOutOfRange, Some(single(&event("poison", "before 1970", 1, -1)))),
        (Reject::EventTimeOutOfRange, Some(single(&event("poison", "seconds", 1, AT_MS / 1000)))),
        (
            Reject::FutureEventTime,
            Some(single(&event("poison", "the day after tomorrow", 1, tomorrow + DAY_MS))),
        ),
    ];
    let poisons = poisons.map(|(reason, payload)| Poison { reason, payload });
    expect_rejected(&tally, poisons.into()).await;
}

/// One whose records have times in seconds, one that sends an old topic again, one whose clock is
/// ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_clock_rejects_nothing() {
    let tally = Installation::new("clocks").await;
    let source = tally.source().await;
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    let mut model = Model::default();
    let now_ms = jiff::Timestamp::now().as_millisecond();
    for (key, clock_ms) in [
        ("seconds", now_ms / 1000),
        ("old", now_ms - 400 * DAY_MS),
        ("ahead", now_ms + 30 * DAY_MS),
    ] {
        let event = Event::new("clocks", key, 1, now_ms);
        source.send_at(Some(clock_ms), 0, Some(&source.encode_single(&event))).await;
        model.add(&event);
    }
    // By Kafka's clock it is as late as it is, whatever the client says.
    let late = Event::new("clocks", "late", 1, now_ms + 3 * DAY_MS);
    let late = source.encode_single(&late);
    source.send_at(Some(now_ms + 3 * DAY_MS), 0, Some(&late)).await;
    tally.prove(&model).await;
    let rejected = topics::messages(&tally.config.kafka, &tally.config.kafka.rejected).await;
    let reasons: Vec<_> =
        rejected.iter().map(|message| topics::header(message, "tally.reason")).collect();
    assert_eq!(reasons, [Some(Reject::FutureEventTime.as_str())]);
    for service in &mut services {
        service.terminate().await;
    }
}

/// The id of a schema that the registry has, but that is no increment's.
pub(crate) async fn other_schema(tally: &Installation) -> u32 {
    let registry =
        tally_platform::registry::Registry::new(&tally.config.registry).expect("a client is made");
    let schema =
        r#"{"type": "record", "name": "Other", "fields": [{"name": "x", "type": "double"}]}"#;
    let subject = format!("{}-other", tally.config.kafka.increments);
    registry.register(&subject, schema).await.expect("the registry takes the schema")
}

/// Letters that do not compress.
pub(crate) fn noise(bytes: usize) -> String {
    let mut dice = Dice(4);
    (0..bytes).map(|_| char::from(b' ' + dice.roll(95) as u8)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_as_long_as_the_log_takes_them_are_rejected_whole() {
    let tally = Installation::new("long").await;
    let source = tally.source().await;
    let long_key = source.encode_single(&Event::new("poison", &noise(900_000), 1, AT_MS));
    let poisons = [
        (Reject::NameOutOfRange, long_key),
        // The broker takes 1,048,588 bytes with what is around them.
        (Reject::NotFramed, noise(1_048_500).into_bytes()),
        (Reject::NotFramed, vec![b'x'; 8 << 20].split_off(200)),
    ];
    let poisons = poisons.map(|(reason, payload)| Poison { reason, payload: Some(payload) });
    expect_rejected(&tally, poisons.into()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_long_to_be_copied_is_rejected_without_its_payload() {
    let tally = Installation::new("too_long").await;
    let source = tally.source().await;
    let payload = vec![b'x'; 17 << 20];
    let client: FutureProducer = tally_kafka::producer(&tally.config.kafka.cluster(), "tally-it")
        .set("message.max.bytes", "33554432")
        .create()
        .expect("a producer is made");
    let record =
        FutureRecord::to(&tally.config.kafka.increments).partition(0).key("key").payload(&payload);
    client.send(record, Timeout::Never).await.expect("the broker takes it compressed");
    let good = Event::new("good", "after it", 1, AT_MS);
    source.single(0, &good).await;
    let mut model = Model::default();
    model.add(&good);

    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.prove(&model).await;
    let rejected = topics::messages(&tally.config.kafka, &tally.config.kafka.rejected).await;
    let [message] = rejected.as_slice() else { panic!("one rejected message: {rejected:?}") };
    assert_eq!((message.key(), message.payload()), (Some(b"key".as_slice()), None));
    let said = ["tally.reason", "tally.offset", "tally.truncated"]
        .map(|name| topics::header(message, name));
    assert_eq!(said, [Some("not_framed"), Some("0"), Some("payload=17825792")]);
    for service in &mut services {
        service.terminate().await;
    }
}

/// The ledger tells of a flush as soon as `deltas` does; the marker on the rejected partition may
/// come later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_waits_for_rejections_behind_an_open_transaction() {
    /// What a verify that does not wait needs several times over.
    const AWHILE: Duration = Duration::from_secs(4);
    let tally = Installation::new("behind").await;
    let kafka = &tally.config.kafka;
    let open: FutureProducer = tally_kafka::transactional_producer(
        &kafka.cluster(),
        "tally-it",
        &format!("open-{}", kafka.rejected),
    )
    .set("transaction.timeout.ms", "60000")
    .set("message.timeout.ms", "60000")
    .create()
    .expect("a producer is made");
    let patience = Timeout::After(Duration::from_secs(30));
    open.init_transactions(patience).expect("transactions start");
    open.begin_transaction().expect("a transaction begins");
    for partition in 0..kafka.partitions {
        let record =
            FutureRecord::<str, str>::to(&kafka.rejected).partition(partition).payload("open");
        open.send(record, Timeout::Never).await.expect("the broker takes it");
    }
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.source().await.send(0, Some(b"poison")).await;
    tally.caught_up().await;

    let progress = ProgressBar::hidden();
    let options = VerifyOptions::default();
    let mut verify = Box::pin(tally_reconciler::verify(&tally.config, &options, &progress));
    if let Ok(early) = tokio::time::timeout(AWHILE, &mut verify).await {
        panic!("{}", early.expect("it can be checked"));
    }
    open.abort_transaction(patience).expect("the transaction is aborted");
    let report = verify.await.expect("it can be checked");
    assert!(report.agrees(), "{report}");
    assert_eq!(report.partitions[0].rejected, 1);
    for service in &mut services {
        service.terminate().await;
    }
}
