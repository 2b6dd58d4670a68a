//! What happened when: lines for people, and the same as JSON lines in `<dir>/history.jsonl`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::fault::FaultKind;
use crate::fault_scope::FaultScope;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Struck {
    /// The fault met its target while increments were in flight.
    Yes,
    /// Injected, but nothing proves that it met anything: it does not count.
    Unproven,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FaultCounts {
    pub struck: u64,
    pub unproven: u64,
}

/// When a fault was there, and what it may have held up.
#[derive(Clone, Debug)]
pub(crate) struct FaultWindow {
    pub(crate) kind: FaultKind,
    pub(crate) scope: FaultScope,
    pub(crate) began: Instant,
    /// None while it lasts.
    pub(crate) healed: Option<Instant>,
}

#[derive(Serialize)]
struct Line<'a> {
    /// Milliseconds since 1970, as Kafka's timestamps are.
    unix_ms: i64,
    /// Seconds since the run began.
    at: f64,
    what: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<FaultKind>,
    detail: &'a str,
}

pub(crate) struct History {
    began: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    file: BufWriter<File>,
    faults: BTreeMap<FaultKind, FaultCounts>,
    windows: Vec<FaultWindow>,
    /// What makes the run's verdict unknown.
    broken: Vec<String>,
    error: Option<io::Error>,
}

impl History {
    /// A history of a run in which faults of these kinds are to strike.
    pub(crate) fn new(dir: &Path, kinds: &[FaultKind]) -> io::Result<History> {
        let file = BufWriter::new(File::create(dir.join("history.jsonl"))?);
        let faults = kinds.iter().map(|kind| (*kind, FaultCounts::default())).collect();
        let inner = Inner { file, faults, windows: Vec::new(), broken: Vec::new(), error: None };
        Ok(History { began: Instant::now(), inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Since the run began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn say(&self, what: &str, detail: &str) {
        self.write(what, None, detail);
    }

    /// The scope is that of the kind.
    pub(crate) fn began(&self, fault: FaultKind, detail: &str) {
        self.began_in(FaultScope::of(fault), fault, detail);
    }

    /// As [`History::began`], of a fault that concerns these partitions only.
    pub(crate) fn began_on<const N: usize>(
        &self,
        partitions: [i32; N],
        fault: FaultKind,
        detail: &str,
    ) {
        let partitions = FaultScope::Partitions(BTreeSet::from(partitions));
        self.began_in(partitions, fault, detail);
    }

    fn began_in(&self, scope: FaultScope, fault: FaultKind, detail: &str) {
        let window = FaultWindow { kind: fault, scope, began: Instant::now(), healed: None };
        self.inner().windows.push(window);
        self.write("fault", Some(fault), detail);
    }

    pub(crate) fn healed(&self, fault: FaultKind, struck: Struck, detail: &str) {
        let mut inner = self.inner();
        match (struck, inner.faults.entry(fault).or_default()) {
            (Struck::Yes, tally) => tally.struck += 1,
            (Struck::Unproven, tally) => tally.unproven += 1,
        }
        // There is one of a kind at a time: a kind is of one lane.
        let mut open = inner.windows.iter_mut().rev();
        if let Some(window) = open.find(|window| window.kind == fault && window.healed.is_none()) {
            window.healed = Some(Instant::now());
        }
        drop(inner);
        let what = if struck == Struck::Yes { "healed" } else { "healed, unproven" };
        self.write(what, Some(fault), detail);
    }

    /// A fault could not be injected, or the harness itself failed.
    pub(crate) fn broke(&self, what: &str, error: &anyhow::Error) {
        let text = format!("{what}: {error:#}");
        self.write("broken", None, &text);
        self.inner().broken.push(text);
    }

    pub(crate) fn faults(&self) -> BTreeMap<FaultKind, FaultCounts> {
        self.inner().faults.clone()
    }

    /// Of every fault so far.
    pub(crate) fn windows(&self) -> Vec<FaultWindow> {
        self.inner().windows.clone()
    }

    pub(crate) fn broken(&self) -> Vec<String> {
        self.inner().broken.clone()
    }

    /// Everything said so far is in the file.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut inner = self.inner();
        match inner.error.take() {
            Some(error) => Err(error),
            None => inner.file.flush(),
        }
    }

    fn write(&self, what: &str, fault: Option<FaultKind>, detail: &str) {
        let at = self.began.elapsed().as_secs_f64();
        let name = fault.map_or_else(String::new, |fault| fault.to_string());
        eprintln!("{at:7.1} s  {what:<16} {name:<28} {detail}");
        let unix_ms = jiff::Timestamp::now().as_millisecond();
        let mut inner = self.inner();
        let mut line = serde_json::to_vec(&Line { unix_ms, at, what, fault, detail })
            .expect("a line is plain JSON");
        line.push(b'\n');
        if let Err(error) = inner.file.write_all(&line) {
            inner.error = Some(error);
        }
    }
}
