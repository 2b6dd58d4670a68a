//! Counts that were changed behind Tally's back: verify finds each change, and names what it is of.

use tally_counts::Fingerprint;
use tally_schemas::Delta;

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::forger::{Forger, header};
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::service::Service;

/// The partition that is tampered with.
pub(crate) const VICTIM: i32 = 1;
const BUCKET_S: u32 = 1_767_225_600;

/// Changes of the counters `lattice-0` to `lattice-19` that the unkeyed fingerprint of 64 bits does
/// not see: found by lattice reduction in a tenth of a second.
const LATTICE: [i64; 20] = [-1, -2, 3, 3, 0, 0, 3, -1, -1, -1, -6, -4, 1, -1, 1, -3, -2, 0, 3, 0];

/// An installation with a few stored batches, its services drained; the victim has one batch only.
pub(crate) async fn counted(name: &str) -> (Installation, Model) {
    let tally = Installation::new(name).await;
    let source = tally.source().await;
    let mut events = random_events(&mut Dice(10), 900);
    let at_ms = i64::from(BUCKET_S) * 1000;
    let lattice = (0..LATTICE.len()).map(|n| Event::new("web", &format!("lattice-{n}"), 10, at_ms));
    events.splice(0..LATTICE.len(), lattice);
    let mut model = Model::default();
    model.add_all(&events);
    source.batch(VICTIM, &events[..300]).await;
    for (events, partition) in events[300..].chunks(50).zip([0, 2].into_iter().cycle()) {
        source.batch(partition, events).await;
    }
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
    (tally, model)
}

impl Installation {
    pub(crate) async fn sql(&self, sql: &str) {
        self.store()
            .query_raw(sql)
            .execute()
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Verify finds the victim, names a finding that contains each of `findings`, and finds nothing
    /// else.
    async fn expect_mismatch(&self, findings: &[&str]) {
        let ended = self.verify().await.expect_code(1);
        let found: Vec<&str> =
            ended.stdout.lines().filter(|line| line.starts_with("partition ")).collect();
        let victim = format!("partition {VICTIM}: ");
        assert!(found.iter().all(|line| line.starts_with(&victim)), "{}", ended.stdout);
        for finding in findings {
            assert!(
                found.iter().any(|line| line.contains(finding)),
                "{finding:?} is not in {}",
                ended.stdout
            );
        }
        assert!(ended.stdout.contains("1 of 3 partitions do NOT agree"), "{}", ended.stdout);
    }
}

/// A change, as SQL, and what verify says of it.
pub(crate) struct Change {
    pub(crate) name: &'static str,
    sql: Vec<String>,
    pub(crate) findings: Vec<String>,
}

/// Makes each change, has it looked at before and after a merge, and takes it back.
pub(crate) async fn for_each_change(tally: &Installation, mut look: impl AsyncFnMut(&Change)) {
    tally.sql("CREATE TABLE untouched AS counts").await;
    tally.sql(&format!("ALTER TABLE untouched ATTACH PARTITION ID '{VICTIM}' FROM counts")).await;
    for change in changes() {
        eprintln!("{}", change.name);
        for sql in &change.sql {
            tally.sql(sql).await;
        }
        look(&change).await;
        tally.sql("OPTIMIZE TABLE counts FINAL").await;
        look(&change).await;
        let replace = format!("ALTER TABLE counts REPLACE PARTITION ID '{VICTIM}' FROM untouched");
        tally.sql(&replace).await;
    }
}

/// A row of the victim that is added: sum and events.
fn row(namespace: &str, key: &str, bucket: u32, sum: i64, events: i64) -> String {
    format!(
        "INSERT INTO counts (partition, namespace, key, bucket, sum_low, sum_high, events, high) \
         VALUES ({VICTIM}, '{namespace}', '{key}', {bucket}, {}, {}, {events}, 0)",
        sum & 0xffff_ffff,
        sum >> 32
    )
}

fn counter(key: &str, expected: &str, found: &str) -> String {
    format!(
        "namespace \"web\", key \"{key}\", bucket 2026-01-01T00:00:00Z: \
         expected {expected}, found {found} "
    )
}

fn changes() -> Vec<Change> {
    let lattice =
        |n: usize, sum, events| row("web", &format!("lattice-{n}"), BUCKET_S, sum, events);
    let one = |key: &str| format!("partition = {VICTIM} AND namespace = 'web' AND key = '{key}'");
    let update = |set: &str, condition: &str| {
        format!("ALTER TABLE counts UPDATE {set} WHERE {condition} SETTINGS mutations_sync = 2")
    };
    let ten = "10 in 1 events";
    let change = |name, sql: &[String], findings: &[String]| Change {
        name,
        sql: sql.to_vec(),
        findings: findings.to_vec(),
    };
    let text = |text: &str| text.to_owned();
    vec![
        change(
            "a sum is one more",
            &[lattice(0, 1, 0)],
            &[
                text("the counts are not what Kafka comes to: they differ in 1 of "),
                counter("lattice-0", ten, "11 in 1"),
                text("every batch in deltas is right, ClickHouse's rows are not"),
            ],
        ),
        change(
            "an event is moved from one counter to another",
            &[lattice(1, 0, 1), lattice(2, 0, -1)],
            &[counter("lattice-1", ten, "10 in 2"), counter("lattice-2", ten, "10 in 0")],
        ),
        change(
            "a sum is moved from one counter to another",
            &[lattice(3, 5, 0), lattice(4, -5, 0)],
            &[counter("lattice-3", ten, "15 in 1"), counter("lattice-4", ten, "5 in 1")],
        ),
        change(
            "what an unkeyed fingerprint of 64 bits does not see",
            &(0..LATTICE.len()).map(|n| lattice(n, LATTICE[n], 0)).collect::<Vec<_>>(),
            &[counter("lattice-10", ten, "4 in 1"), counter("lattice-3", ten, "13 in 1")],
        ),
        change(
            "a multiple of 2^64 is added",
            &[update("sum_high = sum_high + 4294967296", &one("lattice-5"))],
            &[counter("lattice-5", ten, "18446744073709551626 in 1")],
        ),
        change(
            "a row is altered",
            &[update("sum_low = sum_low - 3", &one("lattice-6"))],
            &[counter("lattice-6", ten, "7 in 1")],
        ),
        change(
            "a row is deleted",
            &[format!(
                "ALTER TABLE counts DELETE WHERE {} SETTINGS mutations_sync = 2",
                one("lattice-7")
            )],
            &[counter("lattice-7", ten, "0 in 0"), text("events of the counts: 299 in ClickHouse")],
        ),
        change(
            "a bucket is moved by a minute",
            &[lattice(8, -10, -1), row("web", "lattice-8", BUCKET_S + 60, 10, 1)],
            &[
                counter("lattice-8", ten, "0 in 0"),
                text("bucket 2026-01-01T00:01:00Z: expected 0 in 0 events, found 10 in 1"),
            ],
        ),
        change(
            "a counter that nobody sent",
            &[row("invented", "k", BUCKET_S, 1, 1)],
            &[text("namespace \"invented\", key \"k\"")],
        ),
        change(
            "the ledger's account is altered",
            &[row("__tally", "messages.counted", 0, 1, 0)],
            &[text("messages counted: 2 in ClickHouse, 1 in Kafka")],
        ),
        change(
            "the ledger's position is altered",
            &[row("__tally", "increments", 0, 1, 0)],
            &[text("position in increments: a batch was stored twice")],
        ),
        change(
            "the ledger's position is altered by a multiple of 2^64",
            &[update(
                "sum_high = sum_high + 4294967296",
                &format!("partition = {VICTIM} AND namespace = '__tally' AND key = 'increments'"),
            )],
            &[text("position in increments: a batch was stored twice")],
        ),
        change(
            "the ledger's position in deltas is moved on by one, in both its halves",
            &[format!(
                "INSERT INTO counts (partition, namespace, key, bucket, sum_low, sum_high, events, \
                 high) VALUES ({VICTIM}, '__tally', 'deltas', 0, 1, 0, 1, 2)"
            )],
            &[text(
                "position in deltas: ClickHouse is at offset 2, but deltas has no batch before",
            )],
        ),
        change(
            "the ledger's position in increments is moved back by one, in both its halves",
            &[update(
                "sum_low = sum_low - 1, high = high - 1",
                &format!("partition = {VICTIM} AND namespace = '__tally' AND key = 'increments'"),
            )],
            &[text(
                "ClickHouse is at offset 0, but its last batch, at offset 0 of deltas, ends at 1",
            )],
        ),
        change(
            "a part is stored twice",
            &[format!(
                "INSERT INTO counts (partition, namespace, key, bucket, sum_low, sum_high, events, \
                 high) SELECT partition, namespace, key, bucket, sum_low, sum_high, events, high \
                 FROM counts WHERE partition = {VICTIM}"
            )],
            &[text("a batch was stored twice"), text("every batch in deltas is right")],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_of_the_counts_is_found_and_named() {
    let (tally, _) = counted("tampered").await;
    let rows = (0..LATTICE.len())
        .map(|n| Fingerprint::of_row("web", &format!("lattice-{n}"), BUCKET_S, LATTICE[n]));
    assert_eq!(rows.fold(Fingerprint::ZERO, |sum, row| sum + row), Fingerprint::ZERO);
    for_each_change(&tally, async |change| {
        let findings: Vec<&str> = change.findings.iter().map(String::as_str).collect();
        tally.expect_mismatch(&findings).await;
    })
    .await;
    tally.verify().await.expect_code(0);

    // Rows of a partition that Kafka does not have are of no other.
    tally.sql(&row("web", "lattice-0", BUCKET_S, 1, 1).replace("VALUES (1,", "VALUES (77,")).await;
    let said = tally.verify().await.expect_code(1).stdout;
    assert!(said.contains("partition 77: ClickHouse has rows of it, but Kafka has 3 partitions"));
    assert!(said.contains("1 of 4 partitions do NOT agree"), "{said}");
}

/// What is compared can be narrowed, and nothing else is blamed or cleared by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_found_by_each_scope_that_has_it_and_by_no_other() {
    let (tally, _) = counted("scoped").await;
    tally.sql(&row("web", "lattice-0", BUCKET_S, 5, 1)).await;
    let verify = async |scope: [&str; 2], code| {
        let args = ["reconciler", "verify", scope[0], scope[1]];
        tally.tally(&args).await.expect_code(code).stdout
    };
    let (found, victim) = (counter("lattice-0", "10 in 1 events", "15 in 2"), VICTIM.to_string());
    for scope in [
        ["--partition", &victim],
        ["--namespace", "web"],
        ["--from", "2026-01-01T00:00:00Z"],
        ["--to", "2026-01-01T00:01:00Z"],
    ] {
        let said = verify(scope, 1).await;
        assert!(said.contains(&found), "{scope:?}: {said}");
    }
    for scope in [
        ["--partition", "0"],
        ["--namespace", "elsewhere"],
        ["--from", "2026-01-01T00:01:00Z"],
        ["--to", "2026-01-01T00:00:00Z"],
    ] {
        verify(scope, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_lacks_what_was_committed_is_not_proven_though_no_sink_runs() {
    let (tally, model) = counted("lacking").await;
    let not_proven = async |said: &str| {
        let ended = tally.tally(&["reconciler", "verify", "--max-lag", "0"]).await.expect_code(3);
        assert!(ended.stdout.contains(said), "{said:?} is not in {}", ended.stdout);
        ended.stdout
    };
    // A part that was dropped takes its ledger along.
    tally.sql(&format!("ALTER TABLE counts DROP PARTITION ID '{VICTIM}'")).await;
    let said =
        not_proven("partition 1: not proven: ClickHouse lacks the batches from offset 0").await;
    assert!(said.contains("1 of 3 partitions are NOT proven"), "{said}");
    assert!(said.contains("partition 1: not proven: ClickHouse has nothing of this partition"));

    tally.sql("DROP TABLE counts").await;
    tally.tally(&["init"]).await.expect_code(0);
    let said = not_proven("3 of 3 partitions are NOT proven").await;
    assert!(!said.contains("agree"), "{said}");
    // By default, too: all of it is more than ten flush intervals.
    let said = tally.verify().await.expect_code(3).stdout;
    assert!(said.contains("3 of 3 partitions are NOT proven"), "{said}");

    let mut sink = tally.start(Service::Sink, "a");
    tally.prove(&model).await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_restored_from_before_is_behind_until_the_sink_has_filled_it_again() {
    let (mut tally, mut model) = counted("restored").await;
    tally.allow("starting the partition again at the ledger's position");
    tally.sql("CREATE TABLE before AS counts").await;
    tally.sql("ALTER TABLE before ATTACH PARTITION ID '1' FROM counts").await;
    let events = random_events(&mut Dice(12), 50);
    tally.source().await.batch(VICTIM, &events).await;
    model.add_all(&events);
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
    tally.sql("ALTER TABLE counts REPLACE PARTITION ID '1' FROM before").await;
    let ended = tally.tally(&["reconciler", "verify", "--max-lag", "0"]).await.expect_code(3);
    assert!(ended.stdout.contains("partition 1: not proven: ClickHouse lacks"), "{}", ended.stdout);
    let mut sink = tally.start(Service::Sink, "a");
    tally.prove(&model).await;
    sink.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_was_forged_on_deltas_is_found_and_named() {
    let (tally, _) = counted("forged").await;
    let forger = Forger::new(&tally.config).await;
    let delta =
        Delta { namespace: "web", key: "lattice-0", bucket_s: BUCKET_S, sum: 1_000, events: 1 };
    let offset = forger.batch(header(VICTIM, 1, 1), &[delta]).await;
    let mut sink = tally.start(Service::Sink, "a");
    sink.counts_beyond(0.0, "tally_sink_batches_total", "").await;
    sink.terminate().await;
    let batch = format!("the batch at offset {offset} of deltas is not what offsets 1..1 come to");
    tally.expect_mismatch(&[&counter("lattice-0", "10 in 1 events", "1010 in 2"), &batch]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_was_stored_twice_is_found_by_verify_and_stops_its_partition_alone() {
    let (mut tally, mut model) = counted("twice").await;
    tally
        .sql(&format!(
            "INSERT INTO counts (partition, namespace, key, bucket, sum_low, sum_high, events, \
             high) SELECT partition, namespace, key, bucket, sum_low, sum_high, events, high \
             FROM counts WHERE partition = {VICTIM}"
        ))
        .await;
    tally.expect_mismatch(&["a batch was stored twice"]).await;

    tally.allow("the partition stops; the others go on");
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    services[0].ready().await;
    services[1].logs("the partition stops; the others go on").await;
    let reasons = services[1].readiness().await.expect_err("not ready with a broken partition");
    assert!(reasons.contains(&format!("partitions {{{VICTIM}}} stopped")), "{reasons}");
    let events = random_events(&mut Dice(11), 50);
    tally.source().await.batch(0, &events).await;
    model.add_all(&events);
    services[1].counts_beyond(0.0, "tally_sink_batches_total", "").await;
    tally.expect_mismatch(&["a batch was stored twice"]).await;
}
