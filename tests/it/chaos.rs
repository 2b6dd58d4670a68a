//! One short schedule of faults. Long ones are run by hand: `tally chaos --seed N --minutes M`.

use tempfile::TempDir;

use crate::run::{run, tally};

/// Below the ports that other tests take, which the processes of a run give up for a moment when
/// they are killed.
const FIRST_PORT: u16 = 18_000;
const SECONDS: f64 = 24.0;
const FAULTS: &str =
    "kill-aggregator,kill-sink,sleep-sink,kill-broker,kill-store,cut-link,late-requests";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_schedule_of_faults_leaves_every_count_exact() {
    let folder = TempDir::new().expect("a folder");
    let mut command = tally(folder.path());
    command
        .args([
            "chaos", "--seed", "7", "--rate", "1000", "--json", "--dir", "run", "--faults", FAULTS,
        ])
        .args([
            "--minutes",
            &(SECONDS / 60.0).to_string(),
            "--first-port",
            &FIRST_PORT.to_string(),
        ]);
    let ended = run(&mut command).await.expect_code(0);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("a report is JSON");
    let struck = report["faults"].as_object().expect("faults by kind").values();
    let struck: u64 = struck.map(|kind| kind["struck"].as_u64().expect("a count")).sum();
    assert!(struck >= 3, "{report:#}");
    assert!(
        report["audit"]["logged"]["increments"].as_u64().is_some_and(|counted| counted > 0),
        "{report:#}"
    );
}
