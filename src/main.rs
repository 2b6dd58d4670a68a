//! `tally`: one binary for every service, the local stack and the tools around them.

mod bars;
mod bench;
mod chaos;
mod cli;
mod deliveries;
mod demo;
mod exit;
mod load;
mod local;
mod reconciler;
mod service;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::exit::Failure;

fn main() -> ExitCode {
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
    let config = || tally_service::config::load(cli.config.as_deref()).map_err(Failure::config);
    match cli.command {
        Command::Local { command } => local::run(command, cli.config.as_deref()),
        Command::Demo(args) => {
            let good = service::runtime()?.block_on(demo::run(args)).map_err(Failure::failed)?;
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(exit::MISMATCH) })
        }
        Command::Init => local::init(&config()?),
        Command::Producer => service::run(service::Kind::Producer, &config()?),
        Command::Aggregator => service::run(service::Kind::Aggregator, &config()?),
        Command::Sink => service::run(service::Kind::Sink, &config()?),
        Command::Reader => service::run(service::Kind::Reader, &config()?),
        Command::Reconciler { command } => reconciler::run(&command, &config()?),
        Command::Load(args) => {
            service::runtime()?.block_on(load::run(args, config()?)).map_err(Failure::failed)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench(args) => {
            let good = service::runtime()?.block_on(bench::run(args, config()?)).map_err(Failure::failed)?;
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(exit::MISMATCH) })
        }
        Command::Chaos(args) => {
            let verdict = service::runtime()?.block_on(chaos::run(args)).map_err(Failure::failed)?;
            Ok(exit::of_verdict(verdict))
        }
        Command::BenchChild(args) => {
            bench::child(&args, &config()?).map_err(Failure::failed)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config { check } => {
            let config = config()?;
            if !check {
                print!("{}", toml::to_string(&config).expect("the configuration is plain TOML"));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
