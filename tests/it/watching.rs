//! `tally reconciler watch` verifies for ever.

use serde_json::Value;

use crate::dice::Dice;
use crate::feeder::{Feeder, random_events};
use crate::installation::Installation;
use crate::model::Model;
use crate::reading::log_end;
use crate::service::{Service, ServiceProcess};
use crate::topics;
use crate::wait::until;

const MISMATCH: &str = "tally_reconciler_mismatch";

/// Makes the installation and starts what counts in it, and the watch.
async fn start_watched(tally: &mut Installation) -> [ServiceProcess; 3] {
    tally.tally(&["init"]).await.expect_code(0);
    tally.allow("the counts are not Kafka's");
    // Nothing is stored when the first round begins.
    tally.allow("the counts are not proven");
    [Service::Aggregator, Service::Sink, Service::Watch].map(|service| tally.start(service, "a"))
}

async fn until_mismatch_is(watch: &ServiceProcess, want: f64) {
    until("the watch to say so", async || {
        let value = watch.metric(MISMATCH, "").await?;
        if value == want { Ok(()) } else { Err(format!("it is at {value}")) }
    })
    .await;
}

/// What the reader says of how far the counts are proven, once it says what is wanted.
async fn until_verified(reader: &ServiceProcess, wanted: impl Fn(&Value) -> bool) -> Value {
    let url = format!("{}/v1/verified", reader.url());
    until("the reader to say how far the counts are proven", async || {
        let (status, answer) = reader.call(reader.http().get(&url)).await;
        if status == 200 && wanted(&answer) { Ok(answer) } else { Err(answer.to_string()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_counts_is_told_of_until_it_is_mended() {
    let mut tally = Installation::bare("watched");
    let key_file = tally.config_file().with_file_name("checkpoints.pem");
    tally.configure(|config| {
        config.reconciler.key_file = Some(key_file);
        config.reconciler.watch_interval_ms = 300;
        config.reconciler.checkpoint_interval_ms = 1_000;
    });
    let mut services = start_watched(&mut tally).await;
    let source = tally.source().await;
    let load = Feeder::start(&source, 3);
    let through = "tally_reconciler_verified_through";
    services[2].counts_beyond(30.0, through, "").await;
    services[2].ready().await;
    let mut reader = tally.start(Service::Reader, "a");
    reader.ready().await;

    let change = async |events: i64| {
        let columns = "namespace, key, bucket, partition, events";
        let row = format!("'web', 'key-0', 1767225600, 1, {events}");
        tally.sql(&format!("INSERT INTO counts ({columns}) VALUES ({row})")).await;
    };
    change(1).await;
    until_mismatch_is(&services[2], 1.0).await;
    services[2].logs("namespace \\\"web\\\", key \\\"key-0\\\"").await;
    let reason = services[2].readiness().await.expect_err("it is not ready");
    assert!(reason.contains("does not agree with Kafka in partitions 1"), "{reason}");
    let one = |answer: &Value| answer["partitions"][1].clone();
    let answer = until_verified(&reader, |answer| one(answer)["agrees"] == false).await;
    assert_eq!(one(&answer)["verified_through"], Value::Null, "{answer}");
    change(-1).await;
    until_mismatch_is(&services[2], 0.0).await;
    services[2].ready().await;
    let rest = random_events(&mut Dice(9), 60);
    source.spread(&rest, 20).await;
    let mut model: Model = load.stop().await;
    model.add_all(&rest);
    tally.prove(&model).await;

    // It proves all that is there, and signs it, so that another begins where it was killed.
    let almost_all = async || {
        let kafka = &tally.config.kafka;
        topics::ends(kafka, &kafka.increments).await.iter().sum::<i64>() as f64 - 0.5
    };
    services[2].counts_beyond(almost_all().await, through, "").await;
    let end = log_end(&tally).await;
    let answer = until_verified(&reader, |answer| answer["verified_through"] == end).await;
    assert!(one(&answer)["at"].is_string() && one(&answer)["through"].is_string(), "{answer}");
    reader.terminate().await;

    // What no sink stores is lag, and no mismatch.
    services[1].terminate().await;
    let more = random_events(&mut Dice(10), 60);
    source.spread(&more, 20).await;
    services[2].counts_beyond(0.5, "tally_reconciler_lag", "").await;
    assert_eq!(services[2].metric(MISMATCH, "").await, Ok(0.0));
    services[1].start_again();
    model.add_all(&more);
    tally.prove(&model).await;
    services[2].counts_beyond(almost_all().await, through, "").await;

    services[2].kill();
    let said = tally.tally(&["reconciler", "verify", "--sign-nothing"]).await.expect_code(0);
    assert!(said.stdout.contains("3 partitions are proven by checkpoints"), "{}", said.stdout);
    services[2].start_again();
    services[2].counts_beyond(almost_all().await, through, "").await;
    for service in &mut services {
        service.terminate().await;
    }
}

/// Within an hour, only what is new in ClickHouse is read, unless something differs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merged_changed_and_deleted_rows_are_seen_though_only_new_parts_are_read() {
    let mut tally = Installation::bare("parts");
    tally.configure(|config| {
        config.reconciler.watch_interval_ms = 300;
        config.reconciler.checkpoint_interval_ms = 3_600_000;
    });
    let mut services = start_watched(&mut tally).await;
    let source = tally.source().await;
    let mut model = Model::default();
    let through = "tally_reconciler_verified_through";
    for seed in 0..4 {
        let events = random_events(&mut Dice(seed), 300);
        source.spread(&events, 20).await;
        model.add_all(&events);
        tally.caught_up().await;
        tally.merge().await;
        let ends: i64 =
            topics::ends(&tally.config.kafka, &tally.config.kafka.increments).await.iter().sum();
        services[2].counts_beyond(ends as f64 - 0.5, through, "").await;
    }
    let rounds = "tally_reconciler_rounds_total";
    let mismatches = services[2].metric(rounds, "outcome=\"mismatch\"").await;
    assert_eq!(mismatches.unwrap_or(0.0), 0.0, "merges change nothing");

    let row = "partition = 1 AND namespace = 'web' AND key = 'key-0'";
    let settled = "SETTINGS mutations_sync = 2";
    tally
        .sql(&format!("ALTER TABLE counts UPDATE events = events + 1 WHERE {row} {settled}"))
        .await;
    until_mismatch_is(&services[2], 1.0).await;
    tally
        .sql(&format!("ALTER TABLE counts UPDATE events = events - 1 WHERE {row} {settled}"))
        .await;
    until_mismatch_is(&services[2], 0.0).await;
    tally.prove(&model).await;
    tally
        .sql(&format!("DELETE FROM counts WHERE {row} SETTINGS lightweight_deletes_sync = 2"))
        .await;
    until_mismatch_is(&services[2], 1.0).await;
    for service in &mut services {
        service.terminate().await;
    }
}
