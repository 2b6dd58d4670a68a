use std::fs;

use tally_stack::process::Identity;
use tempfile::TempDir;

use super::*;

const LONG: Duration = Duration::from_secs(20);

struct Bench {
    folder: TempDir,
    spawner: Spawner,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: tempfile::tempdir().unwrap(), spawner: Spawner::new().unwrap() }
    }

    fn shell(&self, script: &str) -> ChildProcess {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        ChildProcess::new(
            "shell",
            vec![command],
            self.folder.path().join("log"),
            &self.spawner,
            None,
        )
        .unwrap()
    }
}

/// Returns once the log holds as many lines: what the script does before them is done.
async fn prints(program: &ChildProcess, lines: usize) {
    let ask = async || match fs::read_to_string(program.log()).unwrap().lines().count() {
        count if count >= lines => Ok(()),
        count => Err(count),
    };
    program.answers(LONG, ask).await.unwrap();
}

fn is_alive(pid: u32) -> bool {
    Identity::of(pid).unwrap().is_some()
}

#[tokio::test]
async fn a_kill_says_whether_there_was_something_to_kill() {
    let bench = Bench::new();
    let program = bench.shell("echo up; exec sleep 600");
    assert!(!program.kill().unwrap());
    program.start().unwrap();
    assert!(program.start().unwrap_err().to_string().ends_with("it runs already"));
    assert_eq!(program.has_ended().unwrap(), None);
    assert!(program.kill().unwrap());
    assert!(!program.kill().unwrap());
    assert!(was_killed(program.has_ended().unwrap().unwrap()));
}

#[tokio::test]
async fn its_log_goes_on_over_its_restarts() {
    let bench = Bench::new();
    let program = bench.shell("echo up; echo $$; exec sleep 600");
    for start in 1..=2 {
        program.start().unwrap();
        prints(&program, 2 * start).await;
        assert_eq!(program.last_words().unwrap(), program.pid().unwrap().to_string());
        assert!(program.kill_and_wait().await.unwrap());
    }
    assert_eq!(fs::read_to_string(program.log()).unwrap().matches("up").count(), 2);
}

#[tokio::test]
async fn one_that_is_told_to_end_says_how_it_did() {
    let bench = Bench::new();
    let program = bench.shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done");
    program.start().unwrap();
    prints(&program, 1).await;
    assert!(program.signal(Signal::Terminate).unwrap());
    assert_eq!(program.ended(LONG).await.unwrap().unwrap().code(), Some(3));
    assert!(!program.signal(Signal::Terminate).unwrap());
}

#[tokio::test]
async fn one_that_sleeps_hears_nothing_until_it_wakes() {
    let bench = Bench::new();
    let program = bench.shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done");
    program.start().unwrap();
    prints(&program, 1).await;
    program.signal(Signal::Stop).unwrap();
    program.signal(Signal::Terminate).unwrap();
    assert_eq!(program.ended(Duration::from_millis(200)).await.unwrap(), None);
    program.signal(Signal::Continue).unwrap();
    assert_eq!(program.ended(LONG).await.unwrap().unwrap().code(), Some(3));
}

#[tokio::test]
async fn one_that_ends_before_it_answers_is_told_from_a_silent_one() {
    let bench = Bench::new();
    let program = bench.shell("echo no such file; exit 2");
    program.start().unwrap();
    let error = program.answers(LONG, async || Err("refused")).await.unwrap_err();
    assert!(error.to_string().ends_with("before it answered: no such file"), "{error}");

    let program = bench.shell("exec sleep 600");
    program.start().unwrap();
    let error = program.answers(Duration::ZERO, async || Err("refused")).await.unwrap_err();
    assert!(error.to_string().ends_with("has not answered within 0ns: refused"), "{error}");
}

#[test]
fn it_outlives_the_thread_that_asked_for_it_and_not_its_owner() {
    let bench = Bench::new();
    let program = bench.shell("exec sleep 600");
    std::thread::scope(|scope| scope.spawn(|| program.start().unwrap()).join().unwrap());
    let pid = program.pid().unwrap();
    assert_eq!(program.has_ended().unwrap(), None);
    assert!(is_alive(pid));
    drop(program);
    assert!(!is_alive(pid));
}

#[test]
fn what_nobody_could_end_any_more_ends_with_the_thread_that_started_it() {
    let Bench { folder, spawner } = Bench::new();
    let bench = Bench { folder, spawner: spawner.clone() };
    let command = Arc::clone(&bench.shell("exec sleep 600").commands[0]);
    let mut child = spawner.spawn(&command).unwrap();
    drop((bench, spawner));
    assert!(was_killed(child.wait().unwrap()));
}
