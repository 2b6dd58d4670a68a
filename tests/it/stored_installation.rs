//! All that an installation stored with the code of an earlier day, byte for byte: its log with
//! delta batches, rejections and bookmarks, its registry, its table, and a checkpoint.
//! `tests/fixtures/make.sh` made it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;
use tally_platform::config::Config;
use tally_stack::{Progress, Stack};

use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::service::{Service, ServiceProcess};
use crate::stack::{self, Claim};

const STORED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/installation.tar.gz");
/// What was posted, a request a line.
const POSTED: &str = include_str!("../fixtures/increments.jsonl");

#[derive(Deserialize)]
struct Posted {
    namespace: String,
    key: String,
    delta: i64,
    at: i64,
    id: Option<String>,
}

/// What requests count as, one after the other.
#[derive(Default)]
struct Counting {
    model: Model,
    seen: BTreeSet<(String, String, String)>,
}

impl Counting {
    fn request(&mut self, body: &str) {
        let items: Vec<Posted> = serde_json::from_str(body).expect("an array of increments");
        for Posted { namespace, key, delta, at, id } in items {
            let is_new = id.is_none_or(|id| self.seen.insert((namespace.clone(), key.clone(), id)));
            if is_new {
                self.model.add(&Event::new(&namespace, &key, delta, at));
            }
        }
    }
}

async fn post(gateway: &ServiceProcess, body: &'static str) {
    let url = format!("{}/v1/increments", gateway.url());
    let request = gateway.http().post(url).header("content-type", "application/json").body(body);
    let (status, answer) = gateway.call(request).await;
    assert_eq!(status, 200, "{answer}");
}

fn unpack(into: &Path) {
    let unpacked = Command::new("tar")
        .args(["--extract", "--gzip", "--no-same-owner", "--strip-components=1", "--file", STORED])
        .arg("-C")
        .arg(into)
        .status()
        .expect("tar runs");
    assert!(unpacked.success(), "{STORED} is not unpacked: {unpacked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_day_stored_is_read_verified_and_counted_on() {
    let claim = Claim::new("stored");
    unpack(&claim.dir);
    let args = stack::args(claim.dir.clone());
    tally_stack::up(&args, &Progress::auto()).await.expect("its stack starts");
    let stack = Stack::new(&args).expect("the arguments agree");
    let mut tally = Installation::bare("stored");
    tally.configure(|config| {
        let default = Config::default();
        config.kafka = default.kafka;
        config.kafka.bootstrap = stack.bootstrap();
        config.kafka.partitions = 2;
        config.registry.url = stack.registry_url();
        config.store = default.store;
        config.store.url = stack.store_url();
        config.aggregator.group = default.aggregator.group;
        config.sink.group = default.sink.group;
        config.reconciler.key_file = Some(claim.dir.join("checkpoint-key.pem"));
    });
    let mut counting = Counting::default();
    POSTED.lines().for_each(|body| counting.request(body));

    let init = tally.tally(&["init"]).await.expect_code(0).stdout;
    assert!(!init.contains("made") && !init.contains("moved on"), "all is there: {init}");
    counting.model.expect(&tally.totals().await);
    let whole = tally.tally(&["reconciler", "verify", "--from-beginning"]).await.expect_code(0);
    let increments = format!(" {} increments", counting.model.increments());
    assert!(whole.stdout.contains(&increments), "{}", whole.stdout);
    let rest = tally.verify().await.expect_code(0).stdout;
    assert!(rest.contains("proven by checkpoints of key"), "{rest}");

    let mut services = [Service::Aggregator, Service::Sink, Service::Producer]
        .map(|service| tally.start(service, "a"));
    for service in &mut services {
        service.ready().await;
    }
    // The ids of then are remembered: what has one counts no more.
    for body in POSTED.lines() {
        post(&services[2], body).await;
        counting.request(body);
    }
    let newer = r#"[{"namespace":"shop","key":"orders","delta":6,"at":1780000000000,"id":"new"}]"#;
    post(&services[2], newer).await;
    counting.request(newer);
    tally.prove(&counting.model).await;
    for service in &mut services {
        service.terminate().await;
    }
}
