use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tally_infra::local::{ServiceArgs, StackArgs};

use crate::bench::{BenchArgs, ChildArgs};
use crate::chaos::ChaosArgs;
use crate::demo::DemoArgs;
use crate::load::LoadArgs;

/// A counter system that never miscounts: every accepted increment is counted exactly once, and anyone can check it.
///
/// Increments go into Kafka, sums come out in ClickHouse. Begin with `tally local up` (a broker, a registry and a store on this
/// machine) and `tally init`, then start the services.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Cli {
    /// The configuration [default: tally.toml, if it is there]. Each key can be set as TALLY_SECTION__KEY too.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Counts 3,000,000 real flights on this machine, kills services midway, and proves every count.
    Demo(DemoArgs),
    /// A broker, a schema registry and a store on this machine, in the background.
    Local {
        #[command(subcommand)]
        command: Local,
    },
    /// Makes the topics, subjects and tables; safe to repeat.
    Init,
    /// The HTTP gateway: takes increments, answers once they are durable.
    Producer,
    /// Sums increments up and commits the sums with the offsets that they cover.
    Aggregator,
    /// Stores each batch of sums as one block, once.
    Sink,
    /// Answers reads, from memory first.
    Reader,
    /// Checks the stored counts against the log.
    Reconciler {
        #[command(subcommand)]
        command: Reconciler,
    },
    /// Sends increments at a rate, and prints what it sent with its checksum.
    Load(LoadArgs),
    /// Measures each part beside a yardstick, on a stack of its own.
    Bench(BenchArgs),
    /// Kills, stops, cuts and delays everything on a stack of its own, under load, and proves that no increment was lost or doubled.
    Chaos(ChaosArgs),
    /// One measurement in a process of its own; `bench` starts this.
    #[command(hide = true)]
    BenchChild(ChildArgs),
    /// Prints the effective configuration, secrets masked.
    Config {
        /// Only check it: exit code 64 and the key's name if it is wrong.
        #[arg(long)]
        check: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum Local {
    /// Starts what is not running, downloads what is missing, and returns once everything answers.
    Up(Up),
    /// Stops what `up` started; the data stays.
    Down(StackArgs),
    /// Says what runs, and where.
    Status(StackArgs),
    /// Serves ClickHouse's HTTP interface over the embedded engine; `up` starts this.
    #[command(hide = true)]
    Engine(Engine),
}

#[derive(Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) stack: StackArgs,
    /// Run `init` and start the services too.
    #[arg(long)]
    pub(crate) services: bool,
    #[command(flatten)]
    pub(crate) ports: ServiceArgs,
}

#[derive(Args)]
pub(crate) struct Engine {
    #[arg(long)]
    pub(crate) library: PathBuf,
    #[arg(long)]
    pub(crate) data: PathBuf,
    #[arg(long)]
    pub(crate) listen: SocketAddr,
}

#[derive(Subcommand)]
pub(crate) enum Reconciler {
    /// Replays the log and compares: exit code 0 if every partition agrees, 1 if one does not, 69 if it could not be checked.
    Verify,
}
