use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use tally_bench::{BenchArgs, ChildArgs};
use tally_demo::DemoArgs;
use tally_load::LoadArgs;
use tally_stack::{ServiceArgs, StackArgs};

use crate::chaos::ChaosArgs;

#[derive(Subcommand)]
pub enum Command {
    /// Counts 3,000,000 real flights on this machine, kills services midway, and proves every
    /// count.
    Demo(DemoArgs),
    /// A broker, a schema registry and a store on this machine, in the background.
    Local {
        #[command(subcommand)]
        command: Local,
    },
    /// Sends increments at a rate, and prints what it sent with its checksum.
    Load(LoadArgs),
    /// Measures each part beside a yardstick, on a stack of its own.
    Bench(BenchArgs),
    /// Kills, stops, cuts and delays everything on a stack of its own, under load, and proves that
    /// no increment was lost or doubled.
    Chaos(ChaosArgs),
    /// One measurement in a process of its own; `bench` starts this.
    #[command(hide = true)]
    BenchChild(ChildArgs),
}

#[derive(Subcommand)]
pub enum Local {
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
pub struct Up {
    #[command(flatten)]
    pub(crate) stack: StackArgs,
    /// Run `init` and start the services too.
    #[arg(long)]
    pub(crate) services: bool,
    #[command(flatten)]
    pub(crate) ports: ServiceArgs,
}

#[derive(Args)]
pub struct Engine {
    #[arg(long)]
    pub(crate) library: PathBuf,
    #[arg(long)]
    pub(crate) data: PathBuf,
    #[arg(long)]
    pub(crate) listen: SocketAddr,
}
