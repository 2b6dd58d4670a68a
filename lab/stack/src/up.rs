//! Brings up what is not there: each part by itself, all side by side.
//!
//! ```text
//! ports, prerequisites ──► broker:   jars ──► format ──► start ──► answers ─┐
//!                     ├──► registry: tarball ──────────► start ──► answers ─┼──► Stack
//!                     └──► store:    library ──────────► start ──► answers ─┘
//! ```
//!
//! A part that runs is kept. A part that fails does not hold up the others; the next `up` goes on
//! from there.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use futures_util::future::join_all;
use tokio::{task::spawn_blocking, time::Instant};

use super::{
    Part, Progress, Stack, StackArgs, broker,
    error::{self, file},
    lock::Lock,
    part::http_client,
    prerequisites,
    process::Process,
    progress::Task,
    ready::until_ready,
    registry,
    state::{Record, StateFile},
    store,
};

/// How long another `up` or `down` of the same stack is waited for: as long as its downloads may
/// take.
const LOCK_PATIENCE: Duration = Duration::from_secs(60 * 60);

/// Returns once every part answers. Safe to repeat: parts that run are kept, dead ones started.
pub async fn up(args: &StackArgs, progress: &Progress) -> anyhow::Result<Stack> {
    let stack = Stack::new(args)?;
    let _lock = lock(&stack, progress).await?;
    let state = StateFile::open(&stack.dir)?;
    let founds = look_around(&stack, &state)?;
    let starting =
        founds.iter().filter(|found| found.process.is_none()).map(|found| found.part).collect();
    check_prerequisites(starting).await?;

    let http = http_client()?;
    let launch = Launch { stack: &stack, state: &state, http: &http, progress };
    let outcomes = join_all(founds.into_iter().map(|found| launch.bring_up(found))).await;
    error::all(outcomes.into_iter().filter_map(Result::err).collect())?;
    Ok(stack)
}

pub(super) async fn lock(stack: &Stack, progress: &Progress) -> anyhow::Result<Lock> {
    let logs = stack.dir.join("logs");
    fs::create_dir_all(&logs).with_context(file("create", &logs))?;
    let mut waits = None;
    let path = stack.dir.join("stack.lock");
    let lock = Lock::acquire(&path, LOCK_PATIENCE, || {
        let task = progress.task("stack");
        task.step("waits for another command that changes this stack");
        waits = Some(task);
    });
    let lock = lock.await?;
    if let Some(task) = waits {
        task.finish("the other command is done");
    }
    Ok(lock)
}

/// A part as it stood before anything was started.
struct Found {
    part: Part,
    process: Option<Process>,
}

/// Which parts run, and whether those that do not could: every port that is taken is named.
fn look_around(stack: &Stack, state: &StateFile) -> anyhow::Result<Vec<Found>> {
    let mut founds = Vec::new();
    let mut errors = Vec::new();
    for part in Part::ALL {
        let process = match state.get(part.name()) {
            Some(record) => running(part, &record, stack)?,
            None => None,
        };
        if process.is_none() {
            for (address, option) in part.ports(stack) {
                let port = address.port();
                if is_taken(address).with_context(|| format!("try port {port} for the {part}"))? {
                    errors.push(anyhow!(
                        "port {port}, which the {part} needs, is already in use by something that \
                         this stack did not start: stop that, or choose another port with {option}"
                    ));
                }
            }
        }
        founds.push(Found { part, process });
    }
    error::all(errors)?;
    Ok(founds)
}

fn running(part: Part, record: &Record, stack: &Stack) -> anyhow::Result<Option<Process>> {
    let process = Process::find(&record.process).with_context(|| part.to_string())?;
    let (running, asked) = (record.address, part.address(stack));
    ensure!(
        process.is_none() || running == asked,
        "the {part} of {} already runs at {running}, not at {asked}: stop it first, \
         or choose another --dir",
        stack.dir.display()
    );
    Ok(process)
}

fn is_taken(address: SocketAddr) -> io::Result<bool> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(true),
        Err(error) => Err(error),
    }
}

/// Only what is needed: a machine whose cache is full needs no package manager.
async fn check_prerequisites(starting: Vec<Part>) -> anyhow::Result<()> {
    let mut tools = Vec::new();
    if starting.iter().any(|part| matches!(part, Part::Broker | Part::Registry)) {
        tools.push(prerequisites::JAVA);
    }
    for part in starting {
        let artifact = part.artifact();
        if !artifact.is_cached()? {
            for tool in artifact.tools() {
                if !tools.contains(tool) {
                    tools.push(*tool);
                }
            }
        }
    }
    spawn_blocking(move || prerequisites::check_tools(&tools)).await?
}

struct Launch<'a> {
    stack: &'a Stack,
    state: &'a StateFile,
    http: &'a reqwest::Client,
    progress: &'a Progress,
}

impl Launch<'_> {
    async fn bring_up(&self, Found { part, process }: Found) -> anyhow::Result<()> {
        let task = self.progress.task(part.name());
        let begun = Instant::now();
        let kept = process.is_some();
        let mut process = match process {
            Some(process) => process,
            None => self.start(part, &task).await?,
        };
        if !kept {
            task.step("waits for its first answer");
        }
        let address = part.address(self.stack);
        let ask = async || part.probe(address, self.http).await;
        until_ready(&mut process, part.name(), &self.stack.log(part.name()), ask).await?;
        if kept {
            task.finish(format_args!("{address}, ran already"));
        } else {
            task.finish(format_args!("{address}, up in {:.1} s", begun.elapsed().as_secs_f64()));
        }
        Ok(())
    }

    async fn start(&self, part: Part, task: &Task) -> anyhow::Result<Process> {
        let artifact = part.artifact().fetch(task).await?;
        let data = self.stack.data(part);
        fs::create_dir_all(&data).with_context(file("create", &data))?;
        let command = match part {
            Part::Broker => broker::prepare(self.stack, &artifact, task).await?,
            Part::Registry => registry::command(&data, self.stack.registry, &artifact),
            Part::Store => store::command(&self.stack.program, &data, self.stack.store, &artifact),
        };
        let log = self.stack.log(part.name());
        match fs::rename(&log, log.with_extension("log.1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(file("rename", &log));
            }
            _ => {}
        }
        self.state.start(part.name(), command, &log, part.address(self.stack), part.version())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_somebody_listens_on_is_taken_and_a_free_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(is_taken(listener.local_addr().unwrap()).unwrap());
        assert!(!is_taken("127.0.0.1:0".parse().unwrap()).unwrap());
    }

    #[tokio::test]
    async fn every_taken_port_is_named_before_anything_is_started() {
        let folder = tempfile::tempdir().unwrap();
        let [store, registry, broker, controller] =
            [0; 4].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let args = StackArgs {
            dir: folder.path().to_owned(),
            broker_port: port(&broker),
            controller_port: Some(port(&controller)),
            registry_port: port(&registry),
            store_port: port(&store),
            program: Some("/nonexistent".into()),
        };
        let taken = up(&args, &Progress::silent()).await.unwrap_err().to_string();
        for (listener, option) in [
            (&broker, "--broker-port"),
            (&controller, "--controller-port"),
            (&registry, "--registry-port"),
            (&store, "--store-port"),
        ] {
            assert!(taken.contains(&format!("port {}, ", port(listener))), "{taken}");
            assert!(taken.contains(option), "{taken}");
        }
        assert!(!folder.path().join("stack.json").exists());
    }
}
