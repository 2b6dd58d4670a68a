//! `tally chaos`: faults on purpose, and the proof that no increment was lost or doubled.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tally_chaos::{FaultKind, RunOptions, Verdict};
use tally_platform::exit::{FAILED, MISMATCH};

#[derive(clap::Args)]
pub struct ChaosArgs {
    /// Chooses the load and the faults: the same seed, the same schedule.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// How long faults are made, in minutes.
    #[arg(long, default_value_t = 10.0, value_name = "MINUTES")]
    minutes: f64,

    /// Only these kinds of faults, joined by commas [default: all].
    #[arg(long, value_delimiter = ',', value_name = "KINDS")]
    faults: Vec<FaultKind>,

    /// Send increments without ids. Kafka's clients then append some twice, and the audit says so.
    #[arg(long)]
    no_ids: bool,

    /// Increments a second.
    #[arg(long, default_value_t = 2_000)]
    rate: u64,

    /// Aggregators, and as many sinks.
    #[arg(long, default_value_t = 2)]
    members: usize,

    /// Another build of tally: each time that a service starts, it is of the other one, so that
    /// versions are mixed, upgraded and taken back under load. Both must know the same settings.
    #[arg(long, value_name = "PROGRAM")]
    other: Option<PathBuf>,

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

impl ChaosArgs {
    /// The command that runs the same schedule.
    fn again(&self) -> String {
        let ChaosArgs { seed, minutes, rate, members, .. } = self;
        let mut again = format!(
            "tally chaos --seed {seed} --minutes {minutes} --rate {rate} --members {members}"
        );
        if !self.faults.is_empty() {
            let kinds: Vec<String> = self.faults.iter().map(FaultKind::to_string).collect();
            again += &format!(" --faults {}", kinds.join(","));
        }
        if let Some(other) = &self.other {
            again += &format!(" --other {}", other.display());
        }
        if self.no_ids {
            again += " --no-ids";
        }
        again
    }
}

/// 0: exact; 1: not; 70: nothing is known, since the harness itself failed.
pub(crate) async fn run(args: ChaosArgs) -> anyhow::Result<Verdict> {
    let again = args.again();
    let kinds = if args.faults.is_empty() { FaultKind::all().to_vec() } else { args.faults };
    let options = RunOptions {
        seed: args.seed,
        lasts: Duration::try_from_secs_f64(args.minutes * 60.0).context("--minutes")?,
        kinds,
        dir: std::path::absolute(&args.dir).context("--dir")?,
        first_port: args.first_port,
        program: std::env::current_exe().context("find this program")?,
        other_program: args.other,
        rate: args.rate,
        members: args.members,
        ids: !args.no_ids,
    };
    let hint = || format!("nothing is known; the same again: {again}");
    let report = tally_chaos::run(&options).await.with_context(hint)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("print the report")?);
    } else {
        println!("{report}");
    }
    let verdict = report.verdict();
    if verdict != Verdict::Passed {
        eprintln!("the same again: {again}\nhistory and logs: {}", options.dir.display());
    }
    Ok(verdict)
}

/// Unknown is no kind of success.
pub(crate) fn exit_code(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Passed => ExitCode::SUCCESS,
        Verdict::Failed => ExitCode::from(MISMATCH),
        Verdict::Unknown => ExitCode::from(FAILED),
    }
}
