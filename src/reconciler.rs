use std::io::IsTerminal;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tally_platform::config::Config;
use tally_platform::exit::{Failure, MISMATCH};
use tally_platform::process::runtime;
use tally_platform::telemetry;

use crate::cli::Reconciler;

pub(crate) fn run(command: &Reconciler, config: &Config) -> Result<ExitCode, Failure> {
    let guard =
        telemetry::start(&config.telemetry, "reconciler", "command").map_err(Failure::config)?;
    let code = match command {
        Reconciler::Verify => verify(config),
    };
    guard.shutdown();
    code
}

fn verify(config: &Config) -> Result<ExitCode, Failure> {
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
    let runtime = runtime().map_err(Failure::failed)?;
    let report = runtime
        .block_on(tally_reconciler::verify(config, &progress))
        .map_err(Failure::unavailable)?;
    progress.finish_and_clear();
    println!("{report}");
    Ok(if report.agrees() { ExitCode::SUCCESS } else { ExitCode::from(MISMATCH) })
}
