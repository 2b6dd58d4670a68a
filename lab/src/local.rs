//! The commands around the local stack.

use std::path::Path;
use std::process::ExitCode;

use tally_platform::exit::Failure;
use tally_platform::process::signals;
use tally_stack::{Progress, Services};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::cli::{Engine, Local, Up};

pub(crate) fn run(
    command: Local,
    config: Option<&Path>,
    runtime: &Runtime,
) -> Result<ExitCode, Failure> {
    match command {
        Local::Up(args) => runtime.block_on(up(&args, config))?,
        Local::Down(args) => {
            println!("{}", runtime.block_on(tally_stack::down(&args)).map_err(Failure::failed)?)
        }
        Local::Status(args) => {
            let status = runtime.block_on(tally_stack::status(&args)).map_err(Failure::failed)?;
            println!("{status}");
            if !status.is_up() {
                return Err(Failure::unavailable(anyhow::anyhow!(
                    "not everything is up: see `tally local up`"
                )));
            }
        }
        Local::Engine(engine) => return serve_engine(engine, runtime),
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(args: &Up, config: Option<&Path>) -> Result<(), Failure> {
    let stack =
        tally_stack::up(&args.stack, &Progress::auto()).await.map_err(Failure::unavailable)?;
    println!("broker    {}", stack.bootstrap());
    println!("registry  {}", stack.registry_url());
    println!("store     {}", stack.store_url());
    if !args.services {
        return Ok(());
    }
    let config = tally_platform::config::load(config).map_err(Failure::config)?;
    let services = Services::new(&stack, &args.ports, 1, &config).map_err(Failure::failed)?;
    let config =
        tally_platform::config::load(Some(services.config_file())).map_err(Failure::config)?;
    tally_infra::init(&config).await.map_err(Failure::unavailable)?;
    services.up().await.map_err(Failure::unavailable)?;
    println!("producer  http://{}", config.producer.listen);
    println!("reader    http://{}", config.reader.listen);
    println!("config    {}", services.config_file().display());
    Ok(())
}

fn serve_engine(engine: Engine, runtime: &Runtime) -> Result<ExitCode, Failure> {
    let config = tally_clickhouse::Config::new(engine.library, engine.data, engine.listen);
    let shutdown = CancellationToken::new();
    runtime.block_on(async {
        let signals = tokio::spawn(signals(shutdown.clone()));
        let served = tally_clickhouse::serve(config, shutdown).await;
        signals.abort();
        served.map_err(Failure::failed)
    })?;
    Ok(ExitCode::SUCCESS)
}
