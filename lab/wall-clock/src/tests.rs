use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use super::*;

const SECOND: i64 = 1_000_000_000;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

#[test]
fn a_process_sees_its_clock_stepped_and_stepped_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock = WallClocks::new(folder.path().join("clocks")).unwrap().of("a shell").unwrap();
    let mut shell = Command::new("bash")
        .args(["-c", r"while read -r; do printf '%(%s)T\n' -1; done"])
        .envs(clock.environment())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut asked = shell.stdin.take().unwrap();
    let mut told = BufReader::new(shell.stdout.take().unwrap());
    for ahead in [0, 3600, -61, 0] {
        clock.set_ahead(ahead * SECOND).unwrap();
        let before = clock.reads().unwrap();
        writeln!(asked).unwrap();
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        let seen = line.trim().parse::<i64>().unwrap() - now();
        assert!((seen - ahead).abs() < 20, "it is {seen} s ahead, not {ahead}");
        assert_eq!(clock.reads().unwrap() > before, ahead != 0);
    }
    drop(asked);
    assert!(shell.wait().unwrap().success());
}
