use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tally_platform::config::Config;
use tally_platform::exit::{Failure, MISMATCH, NOT_PROVEN};
use tally_platform::process::runtime;
use tally_platform::telemetry;
use tally_reconciler::{Scope, Verdict, VerifyOptions};

use crate::cli::{self, Reconciler};

pub(crate) fn run(command: &Reconciler, config: &Config) -> Result<ExitCode, Failure> {
    let guard =
        telemetry::start(&config.telemetry, "reconciler", "command").map_err(Failure::config)?;
    let code = match command {
        Reconciler::Verify(options) => verify(options, config),
        Reconciler::Checkpoints => export(config),
        Reconciler::Watch => unreachable!("it runs as a service"),
    };
    guard.shutdown();
    code
}

fn verify(options: &cli::Verify, config: &Config) -> Result<ExitCode, Failure> {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let progress = ProgressBar::with_draw_target(None, target).with_style(
        ProgressStyle::with_template(
            "replaying {wide_bar} {human_pos}/{human_len} messages, {per_sec}, {eta} left",
        )
        .expect("the template is valid"),
    );
    if let (Some(from), Some(to)) = (options.from, options.to)
        && from >= to
    {
        return Err(Failure::config(anyhow!("--from {from} is not before --to {to}")));
    }
    let runtime = runtime().map_err(Failure::failed)?;
    let report = runtime
        .block_on(tally_reconciler::verify(config, &verify_options(options), &progress))
        .map_err(Failure::unavailable)?;
    progress.finish_and_clear();
    if options.json {
        let json = serde_json::to_string_pretty(&report);
        println!("{}", json.map_err(Failure::failed)?);
    } else {
        println!("{report}");
    }
    Ok(match report.verdict {
        Verdict::Agrees => ExitCode::SUCCESS,
        Verdict::NotProven => ExitCode::from(NOT_PROVEN),
        Verdict::Mismatch => ExitCode::from(MISMATCH),
    })
}

fn export(config: &Config) -> Result<ExitCode, Failure> {
    let runtime = runtime().map_err(Failure::failed)?;
    let lines = runtime
        .block_on(tally_reconciler::export_checkpoints(config))
        .map_err(Failure::unavailable)?;
    print!("{lines}");
    Ok(ExitCode::SUCCESS)
}

fn verify_options(options: &cli::Verify) -> VerifyOptions {
    let seconds = |time: Option<jiff::Timestamp>, absent: u64| {
        time.map_or(absent, |time| u64::try_from(time.as_second()).unwrap_or(0))
    };
    let partitions = (!options.partition.is_empty()).then(|| options.partition.iter().copied());
    let is_limited = options.from.is_some() || options.to.is_some();
    VerifyOptions {
        scope: Scope {
            partitions: partitions.map(Iterator::collect),
            namespace: options.namespace.clone(),
            buckets: is_limited.then(|| seconds(options.from, 0)..seconds(options.to, 1 << 32)),
        },
        max_lag: options.max_lag.map(Duration::from_secs),
        max_rejected: options.max_rejected,
        from_beginning: options.from_beginning,
        signs_nothing: options.sign_nothing,
        checkpoints_file: options.checkpoints.clone(),
    }
}
