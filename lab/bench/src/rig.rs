//! What a bench stands on: the stack, and for each case topics, groups and a database of its own,
//! so that nothing ever has to be wiped.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use clickhouse::Client;
use serde::de::DeserializeOwned;
use tally_counts::Fingerprint;
use tally_counts::ledger::RESERVED_NAMESPACE;
use tally_platform::config::Config;
use tally_platform::store;
use tally_platform::telemetry::sum_of_series;
use tally_reconciler::VerifyOptions;
use tally_stack::process::Process;
use tally_stack::state::StateFile;
use tally_stack::{ServiceArgs, ServiceProcess, Services, Stack};
use tokio::process::{Child, Command};

use super::discard::Discarded;
use super::drain::Drain;
use super::log::Log;
use super::measure::WatchedProcess;
use tally_load::Summary;

/// How long ClickHouse may go on merging what is in it.
const MERGES_PATIENCE: Duration = Duration::from_secs(300);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(30);

pub(crate) struct Rig {
    pub(crate) stack: Stack,
    pub(crate) ports: ServiceArgs,
    /// What the services are run with, but for names and addresses.
    pub(crate) config: Config,
    pub(crate) quick: bool,
    program: PathBuf,
}

impl Rig {
    pub(crate) fn new(
        stack: Stack,
        ports: ServiceArgs,
        config: Config,
        quick: bool,
    ) -> anyhow::Result<Rig> {
        let program = std::env::current_exe().context("find this program")?;
        Ok(Rig { stack, ports, config, quick, program })
    }

    /// The first, or the second in a quick run.
    pub(crate) fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    pub(crate) fn store(&self) -> Client {
        Client::default().with_url(self.stack.store_url())
    }

    /// A part of the stack, for its CPU.
    pub(crate) fn part(&self, name: &str) -> anyhow::Result<WatchedProcess> {
        let record = StateFile::open(self.stack.dir())?.get(name);
        let pid = record.with_context(|| format!("{name} was not started"))?.process.pid;
        Ok(WatchedProcess { name: name.to_owned(), pid })
    }

    /// Stops every service that runs, whichever case started it.
    pub(crate) async fn stop_services(&self) -> anyhow::Result<()> {
        let services = Services::new(&self.stack, &self.ports, 1, &self.config)?;
        for service in &services.all {
            if let Some(process) = services.running(&service.name)? {
                process.stop(GRACE).await.with_context(|| format!("stop {}", service.name))?;
            }
        }
        Ok(())
    }

    /// This program with these arguments, which prints one line of JSON.
    pub(crate) fn start_child<T: DeserializeOwned>(
        &self,
        args: &str,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Running<T>> {
        let mut command = Command::new(&self.program);
        command
            .args(args.split_whitespace())
            .envs(environment.iter().copied())
            .current_dir(self.stack.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().context("start this program")?;
        Ok(Running { name: args.to_owned(), child, answer: PhantomData })
    }
}

/// Topics, groups and a database under one name, and the services that use them.
pub(crate) struct Case<'r> {
    pub(crate) rig: &'r Rig,
    pub(crate) config: Config,
    pub(crate) log: Log,
    services: Services<'r>,
    /// The name of its configuration in the stack's folder.
    file: String,
    http: reqwest::Client,
}

impl<'r> Case<'r> {
    pub(crate) async fn new(rig: &'r Rig, name: &str) -> anyhow::Result<Case<'r>> {
        Case::with(rig, name, 1, |_| ()).await
    }

    /// As [`Case::new`], with a part of the configuration changed, and with so many aggregators and
    /// sinks, numbered from 1 if they are more than one, to be started one by one.
    pub(crate) async fn with(
        rig: &'r Rig,
        name: &str,
        members: usize,
        change: impl FnOnce(&mut Config),
    ) -> anyhow::Result<Case<'r>> {
        let mut config = rig.config.clone();
        config.kafka.increments = format!("{name}.increments");
        config.kafka.deltas = format!("{name}.deltas");
        config.kafka.rejected = format!("{name}.rejected");
        config.kafka.checkpoints = format!("{name}.checkpoints");
        config.aggregator.group = format!("{name}.aggregator");
        config.sink.group = format!("{name}.sink");
        config.store.database = format!("bench_{}", name.replace(['-', '.'], "_"));
        change(&mut config);
        let services = Services::new(&rig.stack, &rig.ports, members, &config)?;
        let config = tally_platform::config::load(Some(services.config_file()))?;
        // The services' own file is overwritten by the next case.
        let file = format!("{name}.toml");
        std::fs::copy(services.config_file(), rig.stack.dir().join(&file))
            .with_context(|| format!("write {file}"))?;
        tally_infra::init(&config).await?;
        let log = Log::new(&config)?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Case { rig, config, log, services, file, http })
    }

    pub(crate) fn client(&self) -> Client {
        store::client(&self.config.store)
    }

    fn service(&self, name: &str) -> &ServiceProcess {
        let named = self.services.all.iter().find(|service| service.name == name);
        named.expect("the stack has a service of that name")
    }

    /// Starts a service without waiting for it to be ready.
    pub(crate) fn start(&self, name: &str) -> anyhow::Result<WatchedProcess> {
        let process = self.services.start(self.service(name))?;
        Ok(WatchedProcess { name: name.to_owned(), pid: process.identity().pid })
    }

    /// Starts a service, and returns once it is ready.
    pub(crate) async fn start_ready(&self, name: &str) -> anyhow::Result<WatchedProcess> {
        let service = self.service(name);
        let process = self.services.start(service)?;
        let pid = process.identity().pid;
        self.services.wait_ready(service, process).await?;
        Ok(WatchedProcess { name: name.to_owned(), pid })
    }

    /// Returns once a service that was started is ready.
    pub(crate) async fn wait_ready(&self, name: &str) -> anyhow::Result<()> {
        self.services.wait_ready(self.service(name), self.running(name)?).await
    }

    /// Fails if a service has ended by itself.
    pub(crate) fn check_runs(&self, name: &str) -> anyhow::Result<()> {
        self.running(name).map(drop)
    }

    fn running(&self, name: &str) -> anyhow::Result<Process> {
        let log = self.rig.stack.log(name);
        let running = self.services.running(name)?;
        running.with_context(|| format!("{name} has ended by itself: see {}", log.display()))
    }

    /// Stops what still runs of the case.
    pub(crate) async fn stop_all(&self) -> anyhow::Result<()> {
        for service in &self.services.all {
            if self.services.running(&service.name)?.is_some() {
                self.stop(&service.name).await?;
            }
        }
        Ok(())
    }

    /// SIGTERM, and until it has drained.
    pub(crate) async fn stop(&self, name: &str) -> anyhow::Result<()> {
        self.running(name)?.stop(GRACE).await.with_context(|| format!("stop {name}"))?;
        Ok(())
    }

    /// SIGKILL, and until its port is free: a process's first thread may be gone before the others
    /// let go of it.
    pub(crate) async fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.running(name)?.kill().await.with_context(|| format!("kill {name}"))?;
        let address = self.service(name).health;
        let begun = Instant::now();
        while let Err(error) = std::net::TcpListener::bind(address) {
            anyhow::ensure!(begun.elapsed() < GRACE, "{address} after {name} was killed: {error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// `tally load` with these arguments, to its end.
    pub(crate) async fn load(&self, args: &str) -> anyhow::Result<Summary> {
        self.start_load(args)?.finish().await
    }

    /// `tally load` with these arguments, beside other work.
    pub(crate) fn start_load(&self, args: &str) -> anyhow::Result<Running<Summary>> {
        self.start_configured(&format!("load --json {args}"))
    }

    /// Reads `increments` to its end with librdkafka alone.
    pub(crate) async fn discard(&self) -> anyhow::Result<Discarded> {
        self.start_configured("bench-child discard")?.finish().await
    }

    pub(crate) fn start_configured<T: DeserializeOwned>(
        &self,
        args: &str,
    ) -> anyhow::Result<Running<T>> {
        // The folder that it runs in is the one that the file is in.
        self.rig.start_child(&format!("--config {} {args}", self.file), &[])
    }

    /// Messages that the aggregators have committed.
    pub(crate) fn committed(&self) -> anyhow::Result<u64> {
        let committed = tokio::task::block_in_place(|| self.log.committed())?;
        Ok(committed.iter().sum::<i64>().cast_unsigned())
    }

    /// What a service says of itself: a metric, summed over its series. 0 as long as it does not
    /// listen yet.
    ///
    /// To ask the store how far it is costs it as much as a block; this costs nothing to speak of.
    pub(crate) async fn metric(&self, service: &str, name: &str) -> anyhow::Result<u64> {
        self.check_runs(service)?;
        let url = format!("http://{}/metrics", self.service(service).health);
        let Ok(answer) = self.http.get(url).send().await else { return Ok(0) };
        let text = answer.error_for_status()?.text().await?;
        let sum = sum_of_series(&text, name, "").map_err(anyhow::Error::msg)?;
        Ok(sum as u64)
    }

    /// Watches the aggregator until it has committed so many messages.
    pub(crate) async fn aggregated(
        &self,
        aggregator: &WatchedProcess,
        messages: u64,
    ) -> anyhow::Result<Drain> {
        Drain::watch(aggregator.pid, messages, async || {
            self.check_runs("aggregator")?;
            self.committed()
        })
        .await
    }

    /// Waits until ClickHouse has everything that is in `increments`; tells how long it took.
    pub(crate) async fn until_stored(&self, patience: Duration) -> anyhow::Result<Duration> {
        self.until_stored_by(&["aggregator", "sink"], patience).await
    }

    /// As [`Case::until_stored`], by these services.
    pub(crate) async fn until_stored_by(
        &self,
        services: &[&str],
        patience: Duration,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let ends = tokio::task::block_in_place(|| self.log.ends())?;
        while self.stored().await? != ends {
            for name in services {
                self.check_runs(name)?;
            }
            anyhow::ensure!(begun.elapsed() < patience, "not stored after {patience:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(begun.elapsed())
    }

    /// Waits until ClickHouse merges nothing, so that what was stored before does not slow down
    /// what is measured next.
    pub(crate) async fn until_merged(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let client = self.client();
        while client.query("SELECT count() FROM system.merges").fetch_one::<u64>().await? > 0 {
            anyhow::ensure!(
                begun.elapsed() < MERGES_PATIENCE,
                "still merging after {MERGES_PATIENCE:?}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// What ClickHouse has of `increments`: next offsets, by partition.
    pub(crate) async fn stored(&self) -> anyhow::Result<Vec<i64>> {
        let ledgers = store::ledgers(&self.client()).await?;
        let next = |partition| ledgers.get(&partition).map_or(0, |ledger| ledger.increments.high);
        Ok((0..self.config.kafka.partitions).map(next).collect())
    }

    /// Replays Kafka's messages against ClickHouse's counts, and compares the fingerprint with what
    /// was sent; says what is wrong.
    pub(crate) async fn verify(&self, sent: &[Summary]) -> anyhow::Result<Result<(), String>> {
        let hidden = indicatif::ProgressBar::hidden();
        let options =
            VerifyOptions { from_beginning: true, signs_nothing: true, ..VerifyOptions::default() };
        let report = tally_reconciler::verify(&self.config, &options, &hidden).await?;
        if !report.agrees() {
            return Ok(Err(format!("verify: {report}")));
        }
        let sum = format!(
            "SELECT sum({}) FROM {} WHERE namespace != '{RESERVED_NAMESPACE}'",
            Fingerprint::sql_row(),
            store::COUNTS
        );
        let stored = self.client().query(&sum).fetch_one::<u64>().await?;
        let mut loaded = 0u64;
        for summary in sent {
            loaded = loaded.wrapping_add(u64::from_str_radix(&summary.checksum, 16)?);
        }
        if stored == loaded {
            return Ok(Ok(()));
        }
        Ok(Err(format!("what was sent comes to {loaded:016x}, what is stored to {stored:016x}")))
    }
}

/// A child process that prints one line of JSON.
pub(crate) struct Running<T> {
    name: String,
    child: Child,
    answer: PhantomData<T>,
}

impl<T: DeserializeOwned> Running<T> {
    pub(crate) fn watched(&self, name: &str) -> WatchedProcess {
        WatchedProcess {
            name: name.to_owned(),
            pid: self.child.id().expect("it was not waited for"),
        }
    }

    pub(crate) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end, and reads what it printed.
    pub(crate) async fn finish(self) -> anyhow::Result<T> {
        let output =
            self.child.wait_with_output().await.with_context(|| format!("run {}", self.name))?;
        anyhow::ensure!(output.status.success(), "{} ended with {}", self.name, output.status);
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("read what {} printed", self.name))
    }
}
