//! The stack under fire: brokers, registry, store, services, and the links between them.
//!
//! ```text
//!  aggregators ─┐                  ┌─► broker 0 ◄─link─┐
//!  sinks ───────┤                  ├─► broker 1 ◄─link─┼─ brokers
//!  gateways ────┼─ a link of each ─┼─► broker 2 ◄─link─┘
//!  readers ─────┤  side to each    ├─► registry
//!  load ────────┘  peer it uses    └─► store
//!  auditor, tools ───────────────────► all of them, past the links
//! ```
//!
//! Every process is a child that ends with the harness in whatever way. All is kept in one folder,
//! made anew:
//!
//! ```text
//! <dir>/broker-N/ registry/ store/   what they keep, over their restarts too
//! <dir>/members/                     a configuration each, and that of the tools
//! <dir>/logs/                        what each process prints, over its restarts
//! <dir>/clocks/                      how far each wall clock is stepped, if any is to be
//! ```

mod address_plan;
mod addresses;
mod brokers;
mod caller;
mod child_process;
mod folder;
mod link;
mod links;
mod member;
mod metadata;
mod ports;
mod properties;
mod server;
mod spawner;
mod topics;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::{Context, ensure};
use serde::Serialize;
use tally_platform::config::Config;
use tally_platform::service::Service;
use tally_platform::store;
use tally_stack::{Part, Progress};
use tally_wall_clock::WallClocks;
use tokio::process::Command;

pub(crate) use caller::Caller;
pub(crate) use child_process::ChildProcess;
pub(crate) use link::{LinkMode, NetworkLink};
pub(crate) use links::{Peer, Way};
pub(crate) use member::Member;

use address_plan::AddressPlan;
use brokers::Brokers;
use folder::Folder;
use links::NetworkLinks;
use member::Addresses;
use ports::Ports;
use server::{Server, ServerContext};
use spawner::Spawner;

const BROKERS: usize = 3;
/// Partitions of `increments` and `deltas`, each, as a run begins.
pub(crate) const PARTITIONS: i32 = 4;

/// What `tally reconciler verify` ended with, and printed.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyOutput {
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub said: String,
}

/// Every process is killed when this is dropped, members excepted, which are their owners'.
pub(crate) struct World {
    folder: Folder,
    program: PathBuf,
    other_program: Option<PathBuf>,
    plan: AddressPlan,
    pub(crate) links: NetworkLinks,
    pub(crate) brokers: Brokers,
    pub(crate) registry: Server,
    pub(crate) store: Server,
    spawner: Spawner,
    /// If the processes' wall clocks can be stepped.
    clocks: Option<WallClocks>,
    http: reqwest::Client,
    members: Mutex<MemberRegistry>,
}

/// The members that were ever started.
struct MemberRegistry {
    ports: Ports,
    addresses: BTreeMap<(Service, String), Addresses>,
    programs: Vec<Weak<ChildProcess>>,
}

impl World {
    /// Returns once everything answers, and topics, subjects and tables are there. No service runs
    /// yet.
    ///
    /// What an earlier run left in `dir` is removed. Ports from `first_port` up are used, about 60
    /// and two a member. `program` is the `tally` binary; members take turns with the other one.
    /// `steps_clocks` says whether each process gets a wall clock that can be stepped.
    pub(crate) async fn start(
        dir: &Path,
        first_port: u16,
        program: &Path,
        other_program: Option<&Path>,
        steps_clocks: bool,
    ) -> anyhow::Result<World> {
        let folder = Folder::anew(dir)?;
        let clocks = steps_clocks.then(|| WallClocks::new(folder.clocks())).transpose()?;
        let mut ports = Ports::from(first_port);
        let plan = AddressPlan::new(BROKERS, &mut ports)?;
        let progress = Progress::auto();
        let (jars, registry, engine) = tokio::try_join!(
            Part::Broker.fetch(&progress),
            Part::Registry.fetch(&progress),
            Part::Store.fetch(&progress),
        )?;
        let links = NetworkLinks::start(&plan).await?;
        let spawner = Spawner::new()?;
        let http = tally_stack::http_client()?;
        let (dir, logs) = (folder.dir(), &folder.logs());
        let context = ServerContext {
            dir,
            logs,
            program,
            spawner: &spawner,
            http: &http,
            clocks: clocks.as_ref(),
        };
        let (brokers, registry, store) = tokio::try_join!(
            Brokers::start(&plan, dir, logs, &jars, &spawner, clocks.as_ref()),
            Server::new(&context, Part::Registry, plan.registry.direct, &registry),
            Server::new(&context, Part::Store, plan.store.direct, &engine),
        )?;
        let members =
            Mutex::new(MemberRegistry { ports, addresses: BTreeMap::new(), programs: Vec::new() });
        let world = World {
            folder,
            program: program.to_owned(),
            other_program: other_program.map(Path::to_owned),
            plan,
            links,
            brokers,
            registry,
            store,
            spawner,
            clocks,
            http,
            members,
        };
        world.init().await?;
        Ok(world)
    }

    async fn init(&self) -> anyhow::Result<()> {
        self.write_config("tools", &self.direct_config())?;
        let output = self.tally(&["init"]).await?;
        let (status, said) = (output.status, said(&output));
        ensure!(status.success(), "`tally init` failed ({status}): {said}");
        Ok(())
    }

    /// Replays the log past the links, and compares.
    pub(crate) async fn verify(&self) -> anyhow::Result<VerifyOutput> {
        let output = self.tally(&["reconciler", "verify"]).await?;
        Ok(VerifyOutput { code: output.status.code(), said: said(&output) })
    }

    async fn tally(&self, args: &[&str]) -> anyhow::Result<std::process::Output> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.folder.config("tools")).args(args).kill_on_drop(true);
        command.output().await.with_context(|| format!("start tally {}", args.join(" ")))
    }

    /// Runs a statement on the store, past the links.
    pub(crate) async fn sql(&self, query: &str) -> anyhow::Result<()> {
        Ok(store::client(&self.direct_config().store).query(query).execute().await?)
    }

    /// How many blocks the store has taken so far, by the ledger's rows for each.
    pub(crate) async fn stored_blocks(&self) -> anyhow::Result<u64> {
        let query = "SELECT uniqExact(partition, key) FROM counts \
                     WHERE namespace = '__tally' AND startsWith(key, 'batch:')";
        Ok(store::client(&self.direct_config().store).query(query).fetch_one().await?)
    }

    /// Starts a service; the name tells it from others of its kind, and is an aggregator's
    /// instance.
    pub(crate) fn start_member(&self, service: Service, name: &str) -> anyhow::Result<Member> {
        let full_name = full_name(service, name);
        let addresses = self.members().addresses(service, name)?;
        let mut config = self.config(Caller::of(service));
        config.aggregator.instance = Some(name.to_owned());
        match service {
            Service::Producer => {
                (config.producer.listen, config.producer.health) =
                    (addresses.listen, addresses.health);
            }
            Service::Aggregator => config.aggregator.health = addresses.health,
            Service::Sink => config.sink.health = addresses.health,
            Service::Watch => config.reconciler.health = addresses.health,
            Service::Reader => {
                (config.reader.listen, config.reader.health) = (addresses.listen, addresses.health);
            }
        }
        let file = self.write_config(&full_name, &config)?;
        let command = |program: &PathBuf| {
            let mut command = std::process::Command::new(program);
            command.arg("--config").arg(&file).args(service.command());
            command.current_dir(self.folder.dir());
            command
        };
        let mut commands = vec![command(&self.program)];
        commands.extend(self.other_program.as_ref().map(command));
        // Both are there from the beginning.
        let first = self.members().programs.len() % commands.len();
        commands.rotate_left(first);
        let log = self.folder.logs().join(format!("{full_name}.log"));
        let clock = self.clocks.as_ref().map(|clocks| clocks.of(&full_name)).transpose()?;
        let program = ChildProcess::new(&full_name, commands, log, &self.spawner, clock)?;
        let program = Arc::new(program);
        self.members().programs.push(Arc::downgrade(&program));
        Member::start(addresses, program, self.http.clone())
    }

    /// The base of `/readyz` of each member of a service that was started and not given up: those
    /// that a fault adds for a while are among them while they are there.
    pub(crate) fn health_urls(&self, service: Service) -> Vec<String> {
        let members = self.members();
        let there: Vec<_> = members.programs.iter().filter_map(Weak::upgrade).collect();
        let is_there = |name: &str| {
            let full_name = full_name(service, name);
            there.iter().any(|program| program.name() == full_name)
        };
        let of_service = members.addresses.iter().filter(|((of, _), _)| *of == service);
        let urls = of_service.filter(|((_, name), _)| is_there(name));
        urls.map(|(_, addresses)| addresses.health_url()).collect()
    }

    fn write_config(&self, name: &str, config: &Config) -> anyhow::Result<PathBuf> {
        let path = self.folder.config(name);
        std::fs::write(&path, toml::to_string(config)?)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn members(&self) -> MutexGuard<'_, MemberRegistry> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker that coordinates a group; there is none before the first group was used.
    pub(crate) async fn coordinator_of_group(&self, group: &str) -> anyhow::Result<usize> {
        self.brokers.leader(metadata::GROUP_OFFSETS, metadata::internal_partition(group)).await
    }

    /// The broker that coordinates a transactional.id; there is none before the first transaction.
    pub(crate) async fn coordinator_of_transactions(&self, id: &str) -> anyhow::Result<usize> {
        self.brokers.leader(metadata::TRANSACTION_STATE, metadata::internal_partition(id)).await
    }

    /// Kills every process, members that are still there among them; the folder stays.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let members: Vec<_> = self.members().programs.iter().filter_map(Weak::upgrade).collect();
        let parts = self.brokers.programs().chain([self.registry.program(), self.store.program()]);
        for program in members.iter().map(Arc::as_ref).chain(parts) {
            program.kill_and_wait().await?;
        }
        Ok(())
    }
}

impl MemberRegistry {
    fn addresses(&mut self, service: Service, name: &str) -> anyhow::Result<Addresses> {
        let member = (service, name.to_owned());
        if let Some(addresses) = self.addresses.get(&member) {
            return Ok(*addresses);
        }
        let addresses = Addresses { health: self.ports.take()?, listen: self.ports.take()? };
        self.addresses.insert(member, addresses);
        Ok(addresses)
    }
}

fn full_name(service: Service, name: &str) -> String {
    format!("{service}-{name}")
}

fn said(output: &std::process::Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}
