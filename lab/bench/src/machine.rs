//! Where the figures come from: the machine, and the versions of what was measured.

use std::fmt;

use clickhouse::Client;
use procfs::{CpuInfo, Current, Meminfo};
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
        let cpu = CpuInfo::current()?.model_name(0).unwrap_or("unknown").to_owned();
        let engine: String = store.query("SELECT version()").fetch_one().await?;
        let profile =
            if cfg!(debug_assertions) { ", NOT OPTIMISED: the figures mean nothing" } else { "" };
        Ok(Machine {
            cpu,
            cores: std::thread::available_parallelism()?.get(),
            memory_bytes: Meminfo::current()?.mem_total,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
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
