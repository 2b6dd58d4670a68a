//! The configuration, as the binary takes it: no stack is needed.

use std::fs;

use crate::run::{Ended, run, tally};

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(toml: &str) -> Folder {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("tally.toml"), toml).expect("it is writable");
        Folder(folder)
    }

    async fn tally(&self, args: &[&str], environment: &[(&str, &str)]) -> Ended {
        run(tally(self.0.path()).args(args).envs(environment.iter().copied())).await
    }
}

#[tokio::test]
async fn an_unknown_key_ends_every_command_with_64_and_its_name() {
    let mistyped = Folder::with("[sink]\nqueud_batches = 3\n");
    for command in
        [&["config", "--check"][..], &["config"], &["sink"], &["init"], &["reconciler", "verify"]]
    {
        let ended = mistyped.tally(command, &[]).await.expect_code(64);
        assert!(ended.stderr.contains("queud_batches"), "{command:?}: {ended:?}");
    }
    let fine = Folder::with("[sink]\nqueued_batches = 3\n");
    let ended = fine
        .tally(&["config", "--check"], &[("TALLY_SINK__QUEUD_BATCHES", "3")])
        .await
        .expect_code(64);
    assert!(ended.stderr.to_lowercase().contains("queud_batches"), "{ended:?}");
    let ended = fine
        .tally(&["config", "--check"], &[("TALLY_SINK__QUEUED_BATCHES", "many")])
        .await
        .expect_code(64);
    assert!(ended.stderr.to_lowercase().contains("queued_batches"), "{ended:?}");
}

/// Kubernetes sets such variables for a Service that is called tally, or tally-kafka.
#[tokio::test]
async fn variables_that_are_no_keys_are_left_alone_but_for_a_key_with_one_underscore() {
    let fine = Folder::with("[kafka]\npartitions = 12\n");
    let of_kubernetes = [
        ("TALLY_PORT", "tcp://10.0.0.1:8080"),
        ("TALLY_SERVICE_HOST", "10.0.0.1"),
        ("TALLY_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("TALLY_KAFKA_PORT_9092_TCP", "tcp://10.0.0.2:9092"),
        ("TALLY_KAFKA_SERVICE_PORT", "9092"),
    ];
    fine.tally(&["config", "--check"], &of_kubernetes).await.expect_code(0);
    for (mistyped, key) in [
        ("TALLY_KAFKA_BOOTSTRAP", "TALLY_KAFKA__BOOTSTRAP"),
        ("TALLY_STORE_PASSWORD", "TALLY_STORE__PASSWORD"),
    ] {
        let ended = fine.tally(&["config", "--check"], &[(mistyped, "x")]).await.expect_code(64);
        let said = format!("{mistyped} is not read: {key} is");
        assert!(ended.stderr.contains(&said), "{ended:?}");
    }
}

#[tokio::test]
async fn check_prints_nothing_when_all_is_well() {
    let fine = Folder::with("[kafka]\npartitions = 12\n");
    let ended = fine.tally(&["config", "--check"], &[]).await.expect_code(0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
}

#[tokio::test]
async fn config_prints_what_is_in_effect_and_masks_secrets() {
    let folder = Folder::with(
        "[kafka]\npartitions = 12\n[store]\nuser = \"tally\"\npassword = \"opensesame\"\n",
    );
    let environment = [
        ("TALLY_KAFKA__BOOTSTRAP", "kafka:9092"),
        ("TALLY_REGISTRY__PASSWORD", "020260728"),
        ("TALLY_AGGREGATOR__INSTANCE", "0"),
    ];
    let ended = folder.tally(&["config"], &environment).await.expect_code(0);
    for (shown, is_shown) in [
        ("partitions = 12", true),
        ("bootstrap = \"kafka:9092\"", true),
        ("user = \"tally\"", true),
        ("password = \"****\"", true),
        ("opensesame", false),
        ("20260728", false),
        ("instance = \"0\"", true),
    ] {
        assert_eq!(ended.stdout.contains(shown), is_shown, "{shown}: {}", ended.stdout);
    }
}

#[tokio::test]
async fn a_named_file_that_is_not_there_is_an_error() {
    let folder = Folder::with("");
    let ended = folder.tally(&["--config", "other.toml", "config"], &[]).await.expect_code(64);
    assert!(ended.stderr.contains("other.toml"), "{ended:?}");
}
