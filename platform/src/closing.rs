//! The end of a service that has nothing left to do but to close its Kafka clients.
//!
//! Closing them may take for ever: an aggregator has been seen that had committed all that it held,
//! and still ran minutes later. Nothing is lost where a client is not closed. But a process that
//! never ends is never started again.

use std::cell::Cell;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::causes::with_causes;
use crate::exit;

/// The time to close everything. One client's part takes up to ten seconds, and what asked the
/// process to end mostly kills it after thirty.
const LIMIT: Duration = Duration::from_secs(20);

/// A process's closing. It begins once each of its parts has begun to close, and the process has
/// 20 s to end from then on.
pub struct Closing {
    parts: Arc<Mutex<Parts>>,
    limit: Duration,
}

#[derive(Default)]
struct Parts {
    working: usize,
    /// Why parts ended, where they failed.
    failures: Vec<String>,
}

/// A worker, or whatever else has clients of its own. One that is dropped before it said how it
/// ended has failed: it panicked.
pub struct Part {
    closing: Closing,
    begun: Cell<bool>,
}

/// Where this is dropped by a panic, its part has failed, and closes its clients from now on.
pub struct PanicWatch<'p>(&'p Part);

const PANICKED: &str = "a thread of this process panicked";

impl Default for Closing {
    fn default() -> Closing {
        Closing { parts: Arc::default(), limit: LIMIT }
    }
}

impl Closing {
    /// One more part that works.
    pub fn part(&self) -> Part {
        self.lock().working += 1;
        let closing = Closing { parts: Arc::clone(&self.parts), limit: self.limit };
        Part { closing, begun: Cell::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// The part ended like this, and closes its clients from now on. What is said first counts.
    pub fn begin<E: Error>(&self, ended: &Result<(), E>) {
        self.begin_as(ended.as_ref().err().map(|error| with_causes(error)));
    }

    /// To be kept where the part's clients are, and made after them: a panic drops it first, and
    /// the clients may take for ever.
    pub fn watch_for_panics(&self) -> PanicWatch<'_> {
        PanicWatch(self)
    }

    fn begin_as(&self, failure: Option<String>) {
        if self.begun.replace(true) {
            return;
        }
        let mut parts = self.closing.lock();
        parts.failures.extend(failure);
        parts.working -= 1;
        if parts.working > 0 {
            return;
        }
        let failures = std::mem::take(&mut parts.failures);
        let limit = self.closing.limit;
        std::thread::Builder::new()
            .name(String::from("closing"))
            .spawn(move || {
                std::thread::sleep(limit);
                end(&failures, limit);
            })
            .expect("the system starts a thread");
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.begin_as(Some(String::from(PANICKED)));
    }
}

impl Drop for PanicWatch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.begin_as(Some(String::from(PANICKED)));
        }
    }
}

fn end(failures: &[String], limit: Duration) -> ! {
    for error in failures {
        tracing::error!(error, "stopped");
    }
    tracing::warn!(
        after_s = limit.as_secs(),
        running = running_threads().join(" "),
        "the process's Kafka clients are not closed yet, and nothing is left to commit: ending it \
         without them"
    );
    std::process::exit(if failures.is_empty() { 0 } else { exit::FAILED.into() });
}

/// The names of this process's threads, which tell what it waits for.
fn running_threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(name).map(|name| name.trim().replace(' ', "-")).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::process::{Command, Stdio};

    use super::*;

    /// Says to a child of this test how its parts end.
    const ENDS: &str = "TALLY_TEST_CLOSING_ENDS";

    /// A client that is never closed.
    struct Hangs;

    impl Drop for Hangs {
        fn drop(&mut self) {
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    fn works_and_panics(part: &Part) {
        let _client = Hangs;
        let _watch = part.watch_for_panics();
        panic!("on purpose");
    }

    /// A process whose parts all begin to close, and never come to an end.
    #[test]
    fn closes_for_ever() {
        let Ok(ends) = std::env::var(ENDS) else { return };
        tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
        let ends: Vec<&str> = ends.split(' ').collect();
        let closing = Closing { limit: Duration::from_millis(20), ..Closing::default() };
        let parts: Vec<Part> = ends.iter().map(|_| closing.part()).collect();
        for (part, end) in parts.into_iter().zip(ends) {
            match end {
                "drained" => part.begin(&Ok::<(), Infallible>(())),
                "drained-then-failed" => {
                    part.begin(&Ok::<(), Infallible>(()));
                    part.begin(&Err(std::io::Error::other("told too late")));
                }
                "failed" => part.begin(&Err(std::io::Error::other("no coordinator"))),
                "panicked" => drop(part),
                "panics" => drop(std::thread::spawn(move || works_and_panics(&part))),
                "works" => std::mem::forget(part),
                other => panic!("{other} is no end"),
            }
        }
        std::thread::sleep(Duration::from_secs(2));
        std::process::exit(7);
    }

    /// The exit code, and the log.
    fn closed(ends: &str) -> (Option<i32>, String) {
        let test = std::env::current_exe().expect("the test's own path");
        let child = Command::new(test)
            .args(["--exact", "closing::tests::closes_for_ever", "--nocapture"])
            .env(ENDS, ends)
            .stdout(Stdio::null())
            .output()
            .expect("the test runs once more");
        (child.status.code(), String::from_utf8_lossy(&child.stderr).into_owned())
    }

    #[test]
    fn a_process_ends_whose_parts_do_not_close() {
        for ends in ["drained", "drained drained", "drained-then-failed drained"] {
            let (code, log) = closed(ends);
            assert_eq!(code, Some(0), "{ends}: {log}");
            assert!(log.contains("nothing is left to commit") && log.contains("closing"), "{log}");
            assert!(!log.contains("ERROR"), "{log}");
        }
        for (ends, reason) in [
            ("failed drained", "no coordinator"),
            ("drained failed", "no coordinator"),
            ("panicked", "panicked"),
            ("panics drained", "panicked"),
            ("drained panicked", "panicked"),
            ("panicked drained", "panicked"),
        ] {
            let (code, log) = closed(ends);
            assert_eq!(code, Some(i32::from(exit::FAILED)), "{ends}: {log}");
            assert!(log.contains("ERROR") && log.contains(reason), "{ends}: {log}");
        }
    }

    #[test]
    fn a_process_goes_on_while_a_part_works() {
        let (code, log) = closed("drained works failed");
        assert_eq!(code, Some(7), "{log}");
    }
}
