//! Stops what the stack started, and nothing else.

use std::{fmt, fs, io, time::Duration};

use anyhow::Context;
use futures_util::future::join_all;

use super::{
    Part, Progress, Stack, StackArgs,
    error::{self, file},
    process::{Ending, Process},
    state::{Record, StateFile},
    up::lock,
};

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(30);

/// What became of each process that the stack had recorded, by name.
#[derive(Debug)]
pub struct Down(pub Vec<(String, Ending)>);

/// Returns when every process is gone. Their data stays, and the next `up` finds it.
pub async fn down(args: &StackArgs) -> anyhow::Result<Down> {
    let stack = Stack::new(args)?;
    if !stack.dir.try_exists().with_context(file("look for", &stack.dir))? {
        return Ok(Down(Vec::new()));
    }
    let _lock = lock(&stack, &Progress::auto()).await?;
    let state = StateFile::open(&stack.dir)?;
    let is_part = |name: &str| Part::ALL.iter().any(|part| part.name() == name);
    let (parts, services): (Vec<_>, Vec<_>) =
        state.all().into_iter().partition(|(name, _)| is_part(name));
    // What uses the parts drains while they are still there.
    let mut outcomes = Vec::new();
    for wave in [services, parts] {
        outcomes.extend(
            join_all(wave.into_iter().map(|(name, record)| stop(&state, name, record))).await,
        );
    }
    let (ended, failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    error::all(failed.into_iter().filter_map(Result::err).collect())?;
    Ok(Down(ended.into_iter().filter_map(Result::ok).collect()))
}

/// As [`down`], and removes the stack's folder: what begins from nothing begins with this.
pub async fn start_over(args: &StackArgs) -> anyhow::Result<()> {
    down(args).await?;
    remove_folder(args)
}

/// Removes the folder of a stack that is down, if it is there.
pub fn remove_folder(args: &StackArgs) -> anyhow::Result<()> {
    match fs::remove_dir_all(&args.dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(file("remove", &args.dir))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn stop(state: &StateFile, name: String, record: Record) -> anyhow::Result<(String, Ending)> {
    let ending = match Process::find(&record.process).with_context(|| name.clone())? {
        Some(process) => process.stop(GRACE).await.with_context(|| name.clone())?,
        None => Ending::WasGone,
    };
    state.remove(&name)?;
    Ok((name, ending))
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "nothing was running");
        }
        for (at, (name, ending)) in self.0.iter().enumerate() {
            let line_end = if at == 0 { "" } else { "\n" };
            write!(f, "{line_end}{name:<9} {ending}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::process::Command;

    use super::{super::process::Identity, *};

    #[tokio::test]
    async fn what_the_stack_started_is_stopped_and_a_stranger_with_a_recorded_pid_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let args = StackArgs {
            dir: folder.path().to_owned(),
            broker_port: 1,
            controller_port: None,
            registry_port: 3,
            store_port: 4,
            program: None,
        };
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("600");
            Process::start(command, &folder.path().join("log")).unwrap()
        };
        let (ours, stranger) = (start(), start());
        let record = |process| Record {
            process,
            address: "127.0.0.1:1".parse().unwrap(),
            version: "1".to_owned(),
            started_at_s: 0,
        };
        let ended = Identity { start_ticks: 1, ..stranger.identity().clone() };
        let state = StateFile::open(folder.path()).unwrap();
        state.insert("broker", record(ours.identity().clone())).unwrap();
        state.insert("store", record(ended)).unwrap();

        let Down(outcome) = down(&args).await.unwrap();
        let [(broker, Ending::Stopped { .. }), (store, Ending::WasGone)] = &outcome[..] else {
            panic!("{outcome:?}")
        };
        assert_eq!((&broker[..], &store[..]), ("broker", "store"));
        assert!(!ours.identity().is_alive().unwrap());
        assert!(stranger.identity().is_alive().unwrap());
        assert!(StateFile::open(folder.path()).unwrap().all().is_empty());
        stranger.stop(GRACE).await.unwrap();
    }

    #[tokio::test]
    async fn where_no_stack_ever_was_nothing_is_stopped_and_no_folder_made() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("none");
        let args = StackArgs {
            dir: dir.clone(),
            broker_port: 1,
            controller_port: None,
            registry_port: 3,
            store_port: 4,
            program: None,
        };
        assert_eq!(down(&args).await.unwrap().to_string(), "nothing was running");
        assert!(!dir.exists());
    }
}
