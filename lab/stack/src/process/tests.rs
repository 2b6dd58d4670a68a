use std::fs;

use super::*;

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("600");
    command
}

fn start(command: Command) -> Process {
    let folder = tempfile::tempdir().unwrap();
    Process::start(command, &folder.path().join("log")).unwrap()
}

#[test]
fn this_process_is_alive_and_a_reused_pid_is_not_it() {
    let me = Identity::of(std::process::id()).unwrap().unwrap();
    assert!(me.is_alive().unwrap());
    assert!(!Identity { start_ticks: me.start_ticks + 1, ..me.clone() }.is_alive().unwrap());
    assert!(!Identity { boot_id: "another boot".into(), ..me }.is_alive().unwrap());
}

#[tokio::test]
async fn a_child_runs_in_a_session_of_its_own_and_stops_on_sigterm() {
    let process = start(sleeper());
    let identity = process.identity().clone();
    let stat = fs::read_to_string(format!("/proc/{}/stat", identity.pid)).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(3).unwrap();
    assert_eq!(session, identity.pid.to_string());

    let ending = process.stop(Duration::from_secs(10)).await.unwrap();
    assert!(matches!(ending, Ending::Stopped { .. }), "{ending:?}");
    assert!(!identity.is_alive().unwrap());
    assert!(Process::find(&identity).unwrap().is_none());
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed_after_the_grace() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]);
    let process = Process::start(command, &log).unwrap();
    while fs::read_to_string(&log).unwrap() != "ready\n" {
        sleep(POLL).await;
    }
    let ending = process.stop(Duration::from_millis(200)).await.unwrap();
    assert!(matches!(ending, Ending::Killed { .. }), "{ending:?}");
}

#[tokio::test]
async fn stopping_a_stranger_that_took_the_pid_signals_nobody() {
    let stranger = start(sleeper());
    let earlier =
        Identity { start_ticks: stranger.identity.start_ticks - 1, ..stranger.identity.clone() };
    let ours = Process { identity: earlier, child: None };

    assert_eq!(ours.stop(Duration::from_secs(1)).await.unwrap(), Ending::WasGone);
    assert!(stranger.identity.is_alive().unwrap());
    stranger.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_child_that_ended_tells_its_status_and_a_zombie_is_not_alive() {
    let mut command = Command::new("sh");
    command.args(["-c", "exit 3"]);
    let mut process = start(command);
    let deadline = Instant::now() + Duration::from_secs(10);
    while process.identity.is_alive().unwrap() {
        assert!(Instant::now() < deadline);
        sleep(POLL).await;
    }
    let Liveness::Ended(Some(status)) = process.liveness().unwrap() else { panic!("{process:?}") };
    assert_eq!(status.code(), Some(3));
}
