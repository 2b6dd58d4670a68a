//! `tally demo`: three million real flights through Kafka, the services and ClickHouse, and
//! proof of every count.
//!
//! ```text
//!  flights-3m.parquet ──► load (Avro batches) ──► increments ─► 2 aggregators ─► deltas
//!     │               └─► gateway (HTTP) ───────────┘            one of each      │
//!     │                   the last flights                       is killed midway ▼
//!     └─► totals: ClickHouse's own aggregate over the file ── equal? ── counts ◄─ 2 sinks
//! ```

mod flights;
mod gateway;
mod load;
mod report;
mod totals;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clickhouse::query::RowCursor;
use indicatif::{HumanCount, MultiProgress, ProgressBar};
use tally_platform::config::Config;
use tally_platform::store;
use tally_reconciler::VerifyOptions;
use tally_stack::artifacts::{NpmPackage, npm_package};
use tally_stack::{Progress, ServiceArgs, ServiceProcess, Services, StackArgs};

use self::flights::Flight;
use self::report::Stage;
use self::watch::Watch;
use tally_load::Bars;

/// Flights of the United States in early 2001, as the Department of Transportation published them
/// (public domain).
const DATA: NpmPackage = NpmPackage {
    name: "vega-datasets",
    version: "3.2.1",
    sha256: "6f72fda460a9863fae5fcb32f85bcd49e1761fdea6dc6cf9f4962472881cc5a3",
    size_bytes: 17_630_305,
    files: &["data/flights-3m.parquet"],
};
const FILE: &str = "data/flights-3m.parquet";

pub(crate) const NAMESPACE: &str = "flights";
/// How many of the last flights go through the HTTP gateway.
const GATEWAY_FLIGHTS: u64 = 100_000;
/// How long a killed service stays away.
const AWAY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    #[command(flatten)]
    stack: StackArgs,
    #[command(flatten)]
    services: ServiceArgs,
    /// Leave everything running at the end, and say what to try.
    #[arg(long)]
    keep: bool,
    /// When an aggregator and a sink are killed, in percent of the increments summed; 100 kills
    /// none.
    #[arg(long, value_name = "PERCENT", default_value_t = 50)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
    kill_at: u8,
}

/// Runs the demo; `false` when a count is not right.
pub async fn run(mut args: DemoArgs) -> anyhow::Result<bool> {
    // A folder of its own: it begins from nothing, so it removes what an earlier demo left.
    args.stack.dir = args.stack.dir.join("demo");
    tally_stack::start_over(&args.stack).await.context("stop an earlier demo")?;
    let outcome = tokio::select! {
        outcome = story(&args) => outcome,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    if args.keep && outcome.is_ok() {
        return outcome;
    }
    eprintln!("stopping everything (--keep leaves it running)");
    tally_stack::down(&args.stack).await.context("stop the stack")?;
    if outcome.is_err() {
        eprintln!("the logs are in {}", args.stack.dir.join("logs").display());
    }
    outcome
}

async fn story(args: &DemoArgs) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let bars = MultiProgress::new();
    let progress = Progress::auto_in(&bars);
    let (stack, data) =
        tokio::join!(tally_stack::up(&args.stack, &progress), npm_package(DATA, &progress));
    let (stack, file) = (stack?, data?.join(FILE));

    let services = Services::new(&stack, &args.services, 2, &Config::default())?;
    let config = Arc::new(tally_platform::config::load(Some(services.config_file()))?);
    tally_infra::init(&config).await?;
    services.up().await?;
    let names: Vec<&str> = services.all.iter().map(|service| service.name.as_str()).collect();
    eprintln!("ready after {:.0} s: {}", begun.elapsed().as_secs_f64(), names.join(", "));

    let client = store::client(&config.store);
    let flights = flights::count(&client, &file).await?;
    let total = flights * flights::INCREMENTS;
    eprintln!("{flights} flights, {total} increments, from {}", file.display());

    let bars = Bars::new(bars);
    let watch = Watch::start(&config, &bars, total)?;
    let sending = bars.bar("sent", total);
    let load = load::Load::start(&config).await?;
    // A task of its own, so that it does not hold up what goes on beside it.
    let cursor = flights::read(&client, &file)?;
    let send = tokio::spawn(send(load, config.clone(), cursor, flights, sending.clone()));
    let send = async { send.await? };
    let kill = kill_midway(&services, args.kill_at, &bars, &watch, total);
    let ((sent, through_gateway), killed) =
        bars.beside(async { tokio::try_join!(send, kill) }).await?;
    sending.finish();
    let (summed, stored) = bars.beside(watch.until_stored()).await?;

    let totals = totals::compare(&client, &file).await?;
    let read = totals::read_back(&config, &totals.busiest).await?;
    let verifying = Instant::now();
    let verify_bar = bars.bar("replayed", 0);
    let verified = bars
        .beside(tally_reconciler::verify(&config, &VerifyOptions::default(), &verify_bar))
        .await?;
    verify_bar.finish();
    let replayed = Stage::since("replayed and compared", total, verifying);

    bars.clear();
    let stages = [sent, through_gateway, summed, stored, replayed];
    let good = report::print(&report::DemoResult {
        stages: &stages,
        killed: killed.as_deref(),
        totals: &totals,
        read: &read,
        verified: &verified,
        total,
        seconds: begun.elapsed().as_secs_f64(),
    });
    if args.keep {
        report::what_to_try(&stack, &config, services.config_file(), &args.stack.dir);
    }
    Ok(good)
}

/// Sends most flights to Kafka and the last of them to the gateway. One reading of the file serves
/// both, so that no flight goes twice or not at all.
async fn send(
    load: load::Load,
    config: Arc<Config>,
    mut cursor: RowCursor<Flight>,
    flights: u64,
    progress: ProgressBar,
) -> anyhow::Result<(Stage, Stage)> {
    let direct = flights.saturating_sub(GATEWAY_FLIGHTS);
    let stage = load.run(&mut cursor, direct, &progress).await?;
    let gateway = gateway::run(&config, &mut cursor, flights - direct, &progress).await?;
    Ok((stage, gateway))
}

/// Kills an aggregator and a sink with SIGKILL once that much was summed, and starts them again.
async fn kill_midway(
    services: &Services<'_>,
    percent: u8,
    bars: &Bars,
    watch: &Watch,
    total: u64,
) -> anyhow::Result<Option<String>> {
    if percent == 100 {
        return Ok(None);
    }
    let at = total * u64::from(percent) / 100;
    while watch.summed() < at {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let summed = watch.summed();
    let victims: Vec<&ServiceProcess> = services
        .all
        .iter()
        .filter(|service| ["aggregator-1", "sink-1"].contains(&&*service.name))
        .collect();
    for victim in &victims {
        let process = services.running(&victim.name)?;
        process.with_context(|| format!("{} does not run", victim.name))?.kill().await?;
    }
    let what = format!(
        "aggregator-1 and sink-1 were killed (SIGKILL) when {} increments were summed",
        HumanCount(summed)
    );
    bars.say(&what);
    tokio::time::sleep(AWAY).await;
    for victim in victims {
        let process = services.start(victim)?;
        services.wait_ready(victim, process).await?;
    }
    bars.say("aggregator-1 and sink-1 are back");
    Ok(Some(format!("{what}, and started again")))
}

/// The file's path in a query.
fn quoted(file: &Path) -> String {
    let path: PathBuf = file.into();
    format!("'{}'", path.display().to_string().replace('\\', "\\\\").replace('\'', "\\'"))
}
