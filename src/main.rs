//! `tally`: one binary for every service, and for the laboratory unless it is built without.

mod cli;
mod reconciler;
mod service;

use std::process::ExitCode;

use clap::Parser;
use tally_platform::exit::Failure;
use tally_platform::process::runtime;
use tally_platform::service::Service;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    unsafe { tally_platform::process::keep_loopback_from_proxies() };
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("tally: {failure}");
            failure.code()
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let file = cli.config.as_deref();
    let config = || tally_platform::config::load(file).map_err(Failure::config);
    match cli.command {
        Command::Init => {
            let runtime = runtime().map_err(Failure::failed)?;
            let report =
                runtime.block_on(tally_infra::init(&config()?)).map_err(Failure::unavailable)?;
            println!("{report}");
            Ok(ExitCode::SUCCESS)
        }
        Command::Producer => service::run(Service::Producer, &config()?),
        Command::Aggregator => service::run(Service::Aggregator, &config()?),
        Command::Sink => service::run(Service::Sink, &config()?),
        Command::Reader => service::run(Service::Reader, &config()?),
        Command::Reconciler { command: cli::Reconciler::Watch } => {
            service::run(Service::Watch, &config()?)
        }
        Command::Reconciler { command } => reconciler::run(&command, &config()?),
        Command::Config { check } => {
            let config = config()?;
            if !check {
                print!("{}", toml::to_string(&config).expect("the configuration is plain TOML"));
            }
            Ok(ExitCode::SUCCESS)
        }
        #[cfg(feature = "lab")]
        Command::Lab(command) => tally_lab::run(command, file),
    }
}
