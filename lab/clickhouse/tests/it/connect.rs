//! A client of another language: `clickhouse-connect`, from PyPI, in a virtual environment of its
//! own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::Server;

const PACKAGE: &str = "clickhouse-connect==1.12.0";

#[test]
fn clickhouse_connect_works() {
    let server = Server::start();
    let python = environment().join("bin/python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/connect.py");
    run(Command::new(python).arg(script).arg(&server.url), "clickhouse-connect against the server");
}

fn environment() -> PathBuf {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PACKAGE.replace("==", "-"));
    if !environment.exists() {
        // Made beside and moved, so that a broken installation is not taken for a whole one. Its
        // scripts name the old path, but its python does not.
        let building = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("create a folder");
        run(
            Command::new("python3").args(["-m", "venv"]).arg(building.path()),
            "python3 -m venv (Debian: python3-venv)",
        );
        let python = building.path().join("bin/python");
        run(
            Command::new(python).args(["-m", "pip", "install", "--quiet", PACKAGE]),
            "pip install clickhouse-connect",
        );
        std::fs::rename(building.path(), &environment).expect("move the environment into place");
    }
    environment
}

fn run(command: &mut Command, what: &str) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "{what} failed, {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!("{what}: {:?} could not be run: {error}", command.get_program()),
    }
}
