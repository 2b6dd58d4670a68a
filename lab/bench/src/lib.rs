//! `tally bench`: each part of the way measured beside a yardstick, in the same run, on a stack of
//! its own.
//!
//! ```text
//!  Rig: a stack, this program
//!   └─► Case: topics, groups and a database of its own ──► a bench ──► Figure ──► table, JSON
//!        └── services, loads and yardsticks as child processes: CPU and memory from /proc
//! ```
//!
//! Nothing is asserted of times. What is asserted is that the counts were right while they were
//! taken.

mod aggregate;
mod blocks;
mod decode;
mod discard;
mod drain;
mod figures;
mod freshness;
mod live;
mod log;
mod machine;
mod measure;
mod peers;
mod rebuild;
mod recovery;
mod rig;
mod scale;
mod sink;
mod sum;
mod trial;
mod verify;
mod watch;

use std::time::Instant;

use anyhow::Context;
use clap::ValueEnum;
use tally_platform::config::Config;
use tally_stack::{Progress, ServiceArgs, StackArgs};

use self::figures::{Figure, Report};
use self::machine::Machine;
use self::rig::Rig;
use self::sum::SumArgs;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
enum Bench {
    /// Messages to increments.
    Decode,
    /// Increments to sums, in memory.
    Sum,
    /// A full topic to deltas.
    Aggregate,
    /// Full deltas to the store.
    Sink,
    /// Everything at once, at a fixed rate and at the highest sustained.
    Live,
    /// From acknowledged to readable.
    Freshness,
    /// From a killed aggregator to caught up.
    Recovery,
    /// From a restarted aggregator to its ids remembered again.
    Rebuild,
    /// Kafka's messages replayed, and compared with what is stored.
    Verify,
    /// What is stored, proven while everything runs.
    Watch,
    /// Members that come and go under load.
    Scale,
    /// Another way to the same counts, on the same topic.
    Peers,
}

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// What to measure [default: all but peers].
    #[arg(value_enum)]
    names: Vec<Bench>,

    /// ClickHouse's own Kafka engine too.
    #[arg(long)]
    peers: bool,

    /// Smaller and shorter: to see that it works.
    #[arg(long)]
    quick: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    stack: StackArgs,
    #[command(flatten)]
    services: ServiceArgs,
}

#[derive(Debug, clap::Args)]
pub struct ChildArgs {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, clap::Subcommand)]
enum Work {
    /// Consumes `increments` with librdkafka alone.
    Discard,
    /// Adds increments up.
    Sum(SumArgs),
}

/// One measurement, printed as a line of JSON.
pub fn child(args: &ChildArgs, config: &Config) -> anyhow::Result<()> {
    let measured = match &args.work {
        Work::Discard => serde_json::to_string(&discard::run(config)?)?,
        Work::Sum(args) => serde_json::to_string(&sum::child(args)?)?,
    };
    println!("{measured}");
    Ok(())
}

/// Runs the benches; `false` when a count was not right.
pub async fn run(mut args: BenchArgs, config: Config) -> anyhow::Result<bool> {
    // A folder of its own: it begins from nothing, so it removes what an earlier run left.
    args.stack.dir = args.stack.dir.join("bench");
    tally_stack::start_over(&args.stack).await.context("stop an earlier bench")?;
    let outcome = tokio::select! {
        outcome = measure_all(&args, config) => outcome,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    tally_stack::down(&args.stack).await.context("stop the stack")?;
    match &outcome {
        // Gigabytes, and nothing to be learned from them.
        Ok(true) => tally_stack::remove_folder(&args.stack)?,
        Ok(false) | Err(_) => {
            eprintln!("the logs are in {}", args.stack.dir.join("logs").display())
        }
    }
    outcome
}

async fn measure_all(args: &BenchArgs, config: Config) -> anyhow::Result<bool> {
    let stack = tally_stack::up(&args.stack, &Progress::auto()).await?;
    let rig = Rig::new(stack, args.services.clone(), config, args.quick)?;
    let machine = Machine::describe(&rig.store()).await?;
    let mut wanted = args.names.clone();
    if wanted.is_empty() {
        wanted.extend(Bench::value_variants().iter().filter(|bench| **bench != Bench::Peers));
    }
    if args.peers && !wanted.contains(&Bench::Peers) {
        wanted.push(Bench::Peers);
    }
    let (mut figures, mut failures) = (Vec::new(), Vec::new());
    let mut highest = None;
    for bench in wanted {
        let begun = Instant::now();
        let name: &'static str = bench.into();
        eprintln!("{name}: measuring");
        match measure(&rig, bench, &mut highest).await {
            Ok(measured) => figures.extend(measured),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failures.push((name, format!("{error:#}")));
                // What it started must not run beside the next one.
                rig.stop_services().await?;
            }
        }
        eprintln!("{name}: {:.0} s", begun.elapsed().as_secs_f64());
    }
    let report = Report { machine: &machine, figures: &figures, failures: &failures };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    let failed = failures.iter().map(|(name, error)| format!("{name} ({error})"));
    let failed = failed.collect::<Vec<_>>().join(", ");
    anyhow::ensure!(failed.is_empty(), "not measured: {failed}");
    Ok(figures.iter().all(|figure| figure.sound))
}

async fn measure(
    rig: &Rig,
    bench: Bench,
    highest: &mut Option<f64>,
) -> anyhow::Result<Vec<Figure>> {
    match bench {
        Bench::Decode => tokio::task::block_in_place(|| decode::run(rig)),
        Bench::Sum => sum::run(rig).await,
        Bench::Aggregate => aggregate::run(rig).await,
        Bench::Sink => sink::run(rig).await,
        Bench::Live => {
            let (figures, rate) = live::run(rig).await?;
            *highest = rate;
            Ok(figures)
        }
        Bench::Freshness => freshness::run(rig, *highest).await,
        Bench::Recovery => recovery::run(rig).await,
        Bench::Rebuild => rebuild::run(rig).await,
        Bench::Verify => verify::run(rig).await,
        Bench::Watch => watch::run(rig).await,
        Bench::Scale => scale::run(rig).await,
        Bench::Peers => peers::run(rig).await,
    }
}
