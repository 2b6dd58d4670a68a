use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tally_stack::{NoAnswer, registry, store};

use super::Error;
use super::child_process::ChildProcess;
use super::ports::check_free;
use super::spawner::Spawner;

const COMES_UP: Duration = Duration::from_secs(90);
/// How often one that ends before it answers is started again, as any supervisor would: the
/// registry gives its database five seconds to open, which a busy machine may exceed.
const TRIES_AGAIN: u32 = 3;

#[derive(Clone, Copy)]
enum ServerKind {
    Registry,
    Store,
}

/// The registry or the store: one process, its data in a folder that outlives it.
pub(crate) struct Server {
    kind: ServerKind,
    program: ChildProcess,
    address: SocketAddr,
    http: reqwest::Client,
}

/// What both have in common.
pub(super) struct ServerContext<'a> {
    pub(super) dir: &'a Path,
    pub(super) logs: &'a Path,
    pub(super) spawner: &'a Spawner,
    pub(super) http: &'a reqwest::Client,
}

impl Server {
    pub(super) async fn registry(
        context: &ServerContext<'_>,
        address: SocketAddr,
        unpacked: &Path,
    ) -> Result<Server, Error> {
        let folder = folder(context, "registry")?;
        let command = registry::command(&folder, address, unpacked);
        Server::begin(ServerKind::Registry, "registry", command, address, context).await
    }

    /// Served by `program`, the `tally` binary.
    pub(super) async fn store(
        context: &ServerContext<'_>,
        address: SocketAddr,
        program: &Path,
        unpacked: &Path,
    ) -> Result<Server, Error> {
        let folder = folder(context, "store")?;
        let command = store::command(program, &folder, address, unpacked);
        Server::begin(ServerKind::Store, "store", command, address, context).await
    }

    async fn begin(
        kind: ServerKind,
        name: &str,
        command: tokio::process::Command,
        address: SocketAddr,
        context: &ServerContext<'_>,
    ) -> Result<Server, Error> {
        let log = context.logs.join(format!("{name}.log"));
        let program = ChildProcess::new(name, command.into_std(), log, context.spawner)?;
        let server = Server { kind, program, address, http: context.http.clone() };
        server.start().await?;
        Ok(server)
    }

    /// Returns once it answers.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        let mut left = TRIES_AGAIN;
        loop {
            check_free(self.program.name(), &[self.address])?;
            self.program.start()?;
            match self.program.answers(COMES_UP, async || self.probe().await).await {
                Err(Error::Died { .. }) if left > 0 => left -= 1,
                outcome => return outcome,
            }
        }
    }

    async fn probe(&self) -> Result<(), NoAnswer> {
        match self.kind {
            ServerKind::Registry => registry::probe(self.address, &self.http).await,
            ServerKind::Store => store::probe(self.address, &self.http).await,
        }
    }

    /// SIGKILL.
    pub(crate) async fn kill(&self) -> Result<(), Error> {
        if self.program.kill_and_wait().await? {
            Ok(())
        } else {
            Err(Error::Gone { action: "kill", name: self.program.name().to_owned() })
        }
    }

    pub(super) fn program(&self) -> &ChildProcess {
        &self.program
    }
}

fn folder(context: &ServerContext<'_>, name: &str) -> Result<std::path::PathBuf, Error> {
    let folder = context.dir.join(name);
    fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    Ok(folder)
}
