//! The brokers' processes, and how each is harmed and brought back.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tally_stack::broker::{Node, new_cluster};
use tally_stack::sys::Signal;
use tally_wall_clock::WallClocks;

use super::address_plan::AddressPlan;
use super::child_process::ChildProcess;
use super::metadata;
use super::ports::check_free;
use super::properties::{node, properties};
use super::spawner::Spawner;

/// Three of them share a machine: a small heap, and no compiler threads that optimise what is
/// killed soon.
const JAVA: [&str; 3] = ["-Xms128m", "-Xmx512m", "-XX:TieredStopAtLevel=1"];
/// A killed broker reads its logs again, while two cores do everything else.
const COMES_UP: Duration = Duration::from_secs(120);

struct Broker {
    program: ChildProcess,
    folder: PathBuf,
    direct: String,
    own: Vec<SocketAddr>,
    asleep: AtomicBool,
}

pub(crate) struct Brokers(Vec<Broker>);

impl Brokers {
    /// Formats their storage and starts them; they are whole once each has heard of all.
    pub(super) async fn start(
        plan: &AddressPlan,
        dir: &Path,
        logs: &Path,
        jars: &Path,
        spawner: &Spawner,
        clocks: Option<&WallClocks>,
    ) -> anyhow::Result<Brokers> {
        let cluster = new_cluster();
        let prepared = (0..plan.brokers.len()).map(|broker| {
            let (folder, cluster) = (dir.join(format!("broker-{broker}")), &cluster);
            async move {
                fs::create_dir_all(&folder)?;
                let node = Node { folder: &folder, jars, options: &JAVA };
                node.configure(&properties(plan, broker))?;
                node.format(cluster).await?;
                let name = format!("broker {broker}");
                let log = logs.join(format!("broker-{broker}.log"));
                let clock = clocks.map(|clocks| clocks.of(&name)).transpose()?;
                let commands = vec![node.command().into_std()];
                let program = ChildProcess::new(&name, commands, log, spawner, clock)?;
                let plan = &plan.brokers[broker];
                let (direct, own) = (plan.direct.to_string(), plan.own());
                let asleep = AtomicBool::new(false);
                anyhow::Ok(Broker { program, folder, direct, own, asleep })
            }
        });
        let brokers = Brokers(try_join_all(prepared).await?);
        for broker in &brokers.0 {
            broker.program.start()?;
        }
        let all: Vec<i32> = (0..brokers.0.len()).map(node).collect();
        try_join_all((0..all.len()).map(|broker| brokers.until_it_sees(broker, &all))).await?;
        Ok(brokers)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns once it answers and counts itself to the cluster.
    pub(crate) async fn start_again(&self, broker: usize) -> anyhow::Result<()> {
        let Broker { program, own, .. } = &self.0[broker];
        check_free(program.name(), own)?;
        program.start()?;
        self.until_it_sees(broker, &[node(broker)]).await
    }

    /// Waits until a broker's own view of the cluster has these nodes: it takes part only once it
    /// has caught up with what the controllers decided, its own readmission included.
    async fn until_it_sees(&self, broker: usize, nodes: &[i32]) -> anyhow::Result<()> {
        let Broker { program, direct, .. } = &self.0[broker];
        let sees = async || {
            let view =
                metadata::view(direct.clone()).await.map_err(|error| format!("{error:#}"))?;
            match nodes.iter().find(|node| !view.nodes.contains(node)) {
                None => Ok(()),
                Some(missing) => Err(format!("it sees nodes {:?}, and not {missing}", view.nodes)),
            }
        };
        program.answers(COMES_UP, sees).await
    }

    pub(crate) async fn kill(&self, broker: usize) -> anyhow::Result<()> {
        let Broker { program, asleep, .. } = &self.0[broker];
        let killed = program.kill_and_wait().await?;
        asleep.store(false, Ordering::Relaxed);
        ensure!(killed, "kill {}: it does not run", program.name());
        Ok(())
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&self, broker: usize, signal: Signal) -> anyhow::Result<()> {
        let Broker { program, asleep, .. } = &self.0[broker];
        ensure!(program.signal(signal)?, "{signal:?} {}: it does not run", program.name());
        asleep.store(signal == Signal::Stop, Ordering::Relaxed);
        Ok(())
    }

    /// Lets no file of a running broker become longer; `None` lifts that. It ends with the process.
    pub(crate) fn limit_files(&self, broker: usize, bytes: Option<u64>) -> anyhow::Result<()> {
        let program = &self.0[broker].program;
        let pid = program.pid().with_context(|| format!("{} does not run", program.name()))?;
        let pid = Pid::from_raw(pid.cast_signed());
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(pid, Resource::Fsize, limit)
            .with_context(|| format!("limit the files of {}", program.name()))?;
        Ok(())
    }

    /// The bytes of the longest file that a broker has of a topic's messages.
    pub(crate) fn fullest_log(&self, broker: usize, topic: &str) -> anyhow::Result<u64> {
        let mut fullest = 0;
        for entry in fs::read_dir(self.0[broker].folder.join("data"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix(topic).and_then(|rest| rest.strip_prefix('-'));
            if number.is_some_and(|number| number.parse::<i32>().is_ok()) {
                let log = entry.path().join("00000000000000000000.log");
                fullest = fullest.max(fs::metadata(&log)?.len());
            }
        }
        Ok(fullest)
    }

    pub(crate) fn has_ended(&self, broker: usize) -> anyhow::Result<bool> {
        Ok(self.0[broker].program.has_ended()?.is_some())
    }

    pub(crate) async fn leader(&self, topic: &str, partition: i32) -> anyhow::Result<usize> {
        let mut asked = None;
        for broker in self.0.iter().filter(|broker| !broker.asleep.load(Ordering::Relaxed)) {
            if broker.program.has_ended()?.is_some() {
                continue;
            }
            match metadata::leader(broker.direct.clone(), topic, partition).await {
                Ok(leader) => {
                    return Ok(usize::try_from(leader - 1).expect("nodes are numbered from one"));
                }
                Err(error) => asked = Some(error),
            }
        }
        Err(asked.context("no broker is awake")?)
    }

    /// The most partitions that any broker sees without all of their replicas. Every broker must
    /// answer: one that is away or behind may see what is not so any more.
    pub(crate) async fn under_replicated(&self) -> anyhow::Result<usize> {
        let views =
            try_join_all(self.0.iter().map(|broker| metadata::view(broker.direct.clone()))).await?;
        Ok(views.into_iter().map(|view| view.under_replicated).max().unwrap_or(0))
    }

    pub(crate) fn programs(&self) -> impl Iterator<Item = &ChildProcess> {
        self.0.iter().map(|broker| &broker.program)
    }
}
