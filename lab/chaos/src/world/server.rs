use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use tally_stack::sys::Signal;
use tally_stack::{Part, registry, store};
use tally_wall_clock::WallClocks;

use super::child_process::ChildProcess;
use super::ports::check_free;
use super::spawner::Spawner;

const COMES_UP: Duration = Duration::from_secs(90);
/// How often one that ends before it answers is started again, as any supervisor would: the
/// registry gives its database five seconds to open, which a busy machine may exceed.
const TRIES_AGAIN: u32 = 3;

/// The registry or the store: one process, its data in a folder that outlives it.
pub(crate) struct Server {
    part: Part,
    program: ChildProcess,
    folder: PathBuf,
    address: SocketAddr,
    http: reqwest::Client,
}

/// What both have in common; the store is served by `program`, the `tally` binary.
pub(super) struct ServerContext<'a> {
    pub(super) dir: &'a Path,
    pub(super) logs: &'a Path,
    pub(super) program: &'a Path,
    pub(super) spawner: &'a Spawner,
    pub(super) http: &'a reqwest::Client,
    pub(super) clocks: Option<&'a WallClocks>,
}

impl Server {
    pub(super) async fn new(
        context: &ServerContext<'_>,
        part: Part,
        address: SocketAddr,
        unpacked: &Path,
    ) -> anyhow::Result<Server> {
        let folder = context.dir.join(part.name());
        fs::create_dir_all(&folder)?;
        let command = match part {
            Part::Store => store::command(context.program, &folder, address, unpacked),
            _ => registry::command(&folder, address, unpacked),
        };
        let log = context.logs.join(format!("{part}.log"));
        let clock = context.clocks.map(|clocks| clocks.of(part.name())).transpose()?;
        let commands = vec![command.into_std()];
        let program = ChildProcess::new(part.name(), commands, log, context.spawner, clock)?;
        let server = Server { part, program, folder, address, http: context.http.clone() };
        server.start().await?;
        Ok(server)
    }

    /// Returns once it answers.
    pub(crate) async fn start(&self) -> anyhow::Result<()> {
        let mut left = TRIES_AGAIN;
        loop {
            check_free(self.program.name(), &[self.address])?;
            self.program.start()?;
            let ask = async || self.part.probe(self.address, &self.http).await;
            match self.program.answers(COMES_UP, ask).await {
                Err(_) if left > 0 && self.program.has_ended()?.is_some() => left -= 1,
                outcome => return outcome,
            }
        }
    }

    pub(crate) fn program(&self) -> &ChildProcess {
        &self.program
    }

    pub(crate) async fn kill(&self) -> anyhow::Result<()> {
        let killed = self.program.kill_and_wait().await?;
        ensure!(killed, "kill {}: it does not run", self.program.name());
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let told = self.program.signal(signal)?;
        ensure!(told, "signal {}: it does not run", self.program.name());
        Ok(())
    }

    /// Has it begin with nothing. Returns once it answers.
    pub(crate) async fn lose_data(&self) -> anyhow::Result<()> {
        self.kill().await?;
        fs::rename(&self.folder, self.kept())?;
        fs::create_dir_all(&self.folder)?;
        self.start().await
    }

    /// Has it begin with what it had before [`Server::lose_data`].
    pub(crate) async fn get_data_back(&self) -> anyhow::Result<()> {
        self.kill().await?;
        fs::remove_dir_all(&self.folder)?;
        fs::rename(self.kept(), &self.folder)?;
        self.start().await
    }

    fn kept(&self) -> PathBuf {
        self.folder.with_extension("kept")
    }
}
