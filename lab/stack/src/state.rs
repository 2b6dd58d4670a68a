//! `<dir>/stack.json`: which processes this stack started.
//!
//! Written after each start and each stop, as a whole, under another name and renamed: whoever
//! reads it sees one state or the next. Changes happen with the stack's lock held.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::error::file;
use super::process::{Identity, Process};

/// A process that was started, as it was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub process: Identity,
    pub address: SocketAddr,
    pub version: String,
    /// Seconds since the Unix epoch.
    pub started_at_s: u64,
}

/// What was started, by the process's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub processes: BTreeMap<String, Record>,
}

/// The file and what it says, for parts that start side by side.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    state: Mutex<State>,
}

impl StateFile {
    /// No file is an empty state: nothing was ever started.
    pub fn open(folder: &Path) -> anyhow::Result<StateFile> {
        let path = folder.join("stack.json");
        let state = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{} is not what this version of tally writes: \
                     stop what the stack left running, then remove it",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error).with_context(file("read", &path)),
        };
        Ok(StateFile { path, state: Mutex::new(state) })
    }

    pub fn get(&self, name: &str) -> Option<Record> {
        self.lock().processes.get(name).cloned()
    }

    pub fn all(&self) -> BTreeMap<String, Record> {
        self.lock().processes.clone()
    }

    /// Starts a process, and records it.
    pub(super) fn start(
        &self,
        name: &str,
        command: Command,
        log: &Path,
        address: SocketAddr,
        version: &str,
    ) -> anyhow::Result<Process> {
        let program = Path::new(command.as_std().get_program()).display().to_string();
        let process =
            Process::start(command, log).with_context(|| format!("start {name}: {program}"))?;
        let record = Record {
            process: process.identity().clone(),
            address,
            version: version.to_owned(),
            started_at_s: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        self.insert(name, record)?;
        Ok(process)
    }

    pub fn insert(&self, name: &str, record: Record) -> anyhow::Result<()> {
        self.change(|state| {
            state.processes.insert(name.to_owned(), record);
        })
    }

    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.change(|state| {
            state.processes.remove(name);
        })
    }

    /// The write happens under the mutex, so that the last change is what stays on disk. It is a
    /// small file.
    fn change(&self, change: impl FnOnce(&mut State)) -> anyhow::Result<()> {
        let mut state = self.lock();
        change(&mut state);
        let bytes = serde_json::to_vec_pretty(&*state).expect("names and numbers only");
        let beside = self.path.with_extension("json.new");
        fs::write(&beside, bytes).with_context(file("write", &beside))?;
        fs::rename(&beside, &self.path).with_context(file("replace", &self.path))
    }

    /// A panic elsewhere leaves a whole state behind: changes are single inserts and removals.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: u32) -> Record {
        Record {
            process: Identity { pid, start_ticks: 1234, boot_id: "a-boot".to_owned() },
            address: "127.0.0.1:9092".parse().unwrap(),
            version: "4.3.1".to_owned(),
            started_at_s: 1_800_000_000,
        }
    }

    #[test]
    fn what_was_recorded_is_found_by_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::open(folder.path()).unwrap();
        file.insert("broker", record(1)).unwrap();
        file.insert("store", record(2)).unwrap();
        file.insert("broker", record(3)).unwrap();
        file.remove("store").unwrap();

        let found = StateFile::open(folder.path()).unwrap().all();
        assert_eq!(found, BTreeMap::from([("broker".to_owned(), record(3))]));
    }

    #[test]
    fn a_missing_file_is_an_empty_state_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(StateFile::open(folder.path()).unwrap().all(), BTreeMap::new());

        for damaged in ["", "{\"processes\": {\"broker\": {}}}", "{\"processes\": {}, \"more\": 1}"]
        {
            fs::write(folder.path().join("stack.json"), damaged).unwrap();
            let error = StateFile::open(folder.path()).unwrap_err();
            assert!(error.to_string().contains("stack.json is not what this version"), "{error}");
        }
    }
}
