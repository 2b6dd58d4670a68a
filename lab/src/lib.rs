//! The laboratory: what proves the product, and is never part of it.
//!
//! ```text
//!  local   a broker, a registry and a store on this machine    (stack/, clickhouse/)
//!  demo    three million real flights, every total compared    (demo/)
//!  load    increments at a rate, and their checksum            (load/)
//!  bench   each part of the way beside a yardstick             (bench/)
//!  chaos   faults by seed, and an audit                        (chaos/)
//! ```

mod chaos;
mod cli;
mod local;

use std::path::Path;
use std::process::ExitCode;

use tally_platform::exit::{Failure, MISMATCH};
use tally_platform::process::runtime;

pub use cli::Command;

/// Runs one of the laboratory's commands; `config` is the file that the command line names.
pub fn run(command: Command, config: Option<&Path>) -> Result<ExitCode, Failure> {
    let load = || tally_platform::config::load(config).map_err(Failure::config);
    let runtime = runtime().map_err(Failure::failed)?;
    let exact = |exact| if exact { ExitCode::SUCCESS } else { ExitCode::from(MISMATCH) };
    match command {
        Command::Local { command } => local::run(command, config, &runtime),
        Command::Demo(args) => {
            runtime.block_on(tally_demo::run(args)).map(exact).map_err(Failure::failed)
        }
        Command::Load(args) => {
            runtime.block_on(tally_load::run(args, load()?)).map_err(Failure::failed)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench(args) => {
            runtime.block_on(tally_bench::run(args, load()?)).map(exact).map_err(Failure::failed)
        }
        Command::BenchChild(args) => {
            tally_bench::child(&args, &load()?).map_err(Failure::failed)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Chaos(args) => {
            runtime.block_on(chaos::run(args)).map(chaos::exit_code).map_err(Failure::failed)
        }
    }
}
