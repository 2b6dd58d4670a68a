//! A producer that is not ours: Python, with the defaults of its own Avro serializer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;
use tokio::process::Command;

use crate::installation::Installation;
use crate::run::run;
use crate::service::Service;

/// A virtual environment with what the example requires; one that an earlier run made is used
/// again.
async fn python() -> PathBuf {
    let example = example();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = folder.join("bin/python");
    if !python.exists() {
        let made = Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder)
            .stdin(Stdio::null())
            .output();
        let made = made.await.unwrap_or_else(|error| {
            panic!(
                "`python3` is needed for the example \
                 (on Debian or Ubuntu: apt install python3-venv): {error}"
            )
        });
        let said = String::from_utf8_lossy(&made.stderr);
        let printed = String::from_utf8_lossy(&made.stdout);
        assert!(
            made.status.success(),
            "`python3 -m venv` is needed for the example \
             (on Debian or Ubuntu: apt install python3-venv): {said}{printed}"
        );
    }
    let mut install = Command::new(&python);
    install
        .args(["-m", "pip", "install", "--quiet", "--requirement"])
        .arg(example.join("requirements.txt"));
    run(&mut install).await.expect_code(0);
    python
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_of_another_language_and_library_lands_its_counts() {
    let tally = Installation::new("python").await;
    let python = python().await;
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    let (kafka, registry) = (&tally.config.kafka, &tally.config.registry);
    let mut producer = Command::new(python);
    producer
        .arg(example().join("producer.py"))
        .args([
            "--bootstrap",
            &kafka.bootstrap,
            "--registry",
            &registry.url,
            "--topic",
            &kafka.increments,
        ])
        .args(["--namespace", "snake", "--count", "1000", "--key-prefix", "ключ:"]);
    let printed = run(&mut producer).await.expect_code(0).stdout;
    let report: Report = serde_json::from_str(&printed).expect("the example prints what it sent");
    assert_eq!((report.increments, report.counters.len()), (1_000, 10), "{printed}");

    tally.caught_up().await;
    let mut found: BTreeMap<String, Sent> = BTreeMap::new();
    // The events' time is the producer's own, so the buckets are for the producer to know.
    for ((namespace, key, _), (value, events)) in tally.totals().await {
        assert_eq!(namespace, "snake");
        let total = found.entry(key).or_default();
        total.value += i64::try_from(value).expect("the example sends little");
        total.events += events;
    }
    assert_eq!(found, report.counters);
    tally.verify().await.expect_code(0);
    for service in &mut services {
        service.terminate().await;
    }
}

/// What the example says that it sent.
#[derive(Deserialize)]
struct Report {
    increments: i64,
    counters: BTreeMap<String, Sent>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
struct Sent {
    value: i64,
    events: i64,
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python")
}
