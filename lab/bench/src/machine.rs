//! Where the figures come from: the machine, and the versions of what was measured.

use std::fmt;
use std::fs;

use anyhow::Context;
use clickhouse::Client;
use serde::Serialize;
use tally_stack::Part;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
    broker: String,
    registry: String,
    store: String,
    tally: String,
    date: String,
    command: String,
}

impl Machine {
    pub(crate) async fn describe(store: &Client) -> anyhow::Result<Machine> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let (cpuinfo, meminfo) = (read("/proc/cpuinfo")?, read("/proc/meminfo")?);
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let memory = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
        let memory_kib: u64 = memory.context("/proc/meminfo has no MemTotal")?.trim().parse()?;
        let engine: String = store.query("SELECT version()").fetch_one().await?;
        let profile =
            if cfg!(debug_assertions) { ", NOT OPTIMISED: the figures mean nothing" } else { "" };
        Ok(Machine {
            cpu: model.map_or("unknown", |(_, model)| model).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_bytes: memory_kib << 10,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            broker: format!("Apache Kafka {}", Part::Broker.version()),
            registry: format!("Apicurio Registry {}", Part::Registry.version()),
            store: format!("ClickHouse {engine} (chdb {})", Part::Store.version()),
            tally: format!("{}{profile}", env!("CARGO_PKG_VERSION")),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        writeln!(
            f,
            "machine  {}, {} cores, {gib:.0} GiB, Linux {}",
            self.cpu, self.cores, self.kernel
        )?;
        writeln!(f, "log      {}, {}", self.broker, self.registry)?;
        writeln!(f, "store    {}", self.store)?;
        writeln!(
            f,
            "tally    {}, librdkafka {}",
            self.tally,
            rdkafka::util::get_rdkafka_version().1
        )?;
        write!(f, "run      {}: tally {}", self.date, self.command)
    }
}
