//! The commands around the local stack, and `tally init`.

use std::process::ExitCode;

use tally_infra::local::{self, Progress};
use tally_service::config::Config;
use tokio_util::sync::CancellationToken;

use crate::cli::{Engine, Local};
use crate::exit::Failure;
use crate::service::{runtime, signals};

pub(crate) fn run(command: Local) -> Result<ExitCode, Failure> {
    let runtime = runtime()?;
    match command {
        Local::Up(args) => {
            let stack = runtime.block_on(local::up(&args, &Progress::auto())).map_err(Failure::unavailable)?;
            println!("broker    {}", stack.bootstrap());
            println!("registry  {}", stack.registry_url());
            println!("store     {}", stack.store_url());
        }
        Local::Down(args) => println!("{}", runtime.block_on(local::down(&args)).map_err(Failure::failed)?),
        Local::Status(args) => {
            let status = runtime.block_on(local::status(&args)).map_err(Failure::failed)?;
            println!("{status}");
            if !status.is_up() {
                return Err(Failure::unavailable(anyhow::anyhow!("not everything is up: see `tally local up`")));
            }
        }
        Local::Engine(engine) => return serve_engine(engine, &runtime),
    }
    Ok(ExitCode::SUCCESS)
}

fn serve_engine(engine: Engine, runtime: &tokio::runtime::Runtime) -> Result<ExitCode, Failure> {
    let config = tally_engine::Config::new(engine.library, engine.data, engine.listen);
    let shutdown = CancellationToken::new();
    runtime.block_on(async {
        let signals = tokio::spawn(signals(shutdown.clone()));
        let served = tally_engine::serve(config, shutdown).await;
        signals.abort();
        served.map_err(Failure::failed)
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn init(config: &Config) -> Result<ExitCode, Failure> {
    let report = runtime()?.block_on(tally_infra::init::init(config)).map_err(Failure::unavailable)?;
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}
