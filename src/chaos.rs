//! `tally chaos`: faults on purpose, and the proof that no increment was lost or doubled.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tally_chaos::{Kind, RunOptions, Verdict};

#[derive(clap::Args)]
pub(crate) struct ChaosArgs {
    /// Chooses the load and the faults: the same seed, the same schedule.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// How long faults are made, in minutes.
    #[arg(long, default_value_t = 10.0, value_name = "MINUTES")]
    minutes: f64,

    /// Only these kinds of faults, joined by commas [default: all].
    #[arg(long, value_delimiter = ',', value_name = "KINDS")]
    faults: Vec<Kind>,

    /// Increments a second.
    #[arg(long, default_value_t = 5_000)]
    rate: u64,

    /// Aggregators, and as many sinks.
    #[arg(long, default_value_t = 2)]
    members: usize,

    /// Where the run keeps its data, logs and history; made anew.
    #[arg(long, default_value = ".tally/chaos", value_name = "FOLDER")]
    dir: PathBuf,

    /// The first of about 80 ports.
    #[arg(long, default_value_t = 16_000, value_name = "PORT")]
    first_port: u16,

    /// The report as JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// 0: exact; 1: not; 70: nothing is known, since the harness itself failed.
pub(crate) async fn run(args: ChaosArgs) -> anyhow::Result<Verdict> {
    let kinds = if args.faults.is_empty() { Kind::all().to_vec() } else { args.faults };
    let options = RunOptions {
        seed: args.seed,
        lasts: Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?,
        kinds,
        dir: std::path::absolute(&args.dir).context("--dir")?,
        first_port: args.first_port,
        program: std::env::current_exe().context("find this program")?,
        rate: args.rate,
        aggregators: args.members,
        sinks: args.members,
        quiet: false,
    };
    let report = tally_chaos::run(&options).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("print the report")?);
    } else {
        println!("{report}");
    }
    let verdict = report.verdict();
    if verdict != Verdict::Passed {
        println!(
            "again: tally chaos --seed {} --minutes {}   history and logs: {}",
            args.seed,
            args.minutes,
            options.dir.display()
        );
    }
    Ok(verdict)
}
