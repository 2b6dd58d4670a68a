use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// A counter system that never miscounts: every accepted increment is counted exactly once, and
/// anyone can check it.
///
/// Increments go into Kafka, sums come out in ClickHouse. Begin with `tally local up` (a broker, a
/// registry and a store on this machine) and `tally init`, then start the services.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Cli {
    /// The configuration [default: tally.toml, if it is there]. Each key can be set as
    /// TALLY_SECTION__KEY too.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes the topics, subjects and tables; safe to repeat.
    Init,
    /// The HTTP gateway: takes increments, answers once they are durable.
    Producer,
    /// Sums increments up and commits the sums with the offsets that they cover.
    Aggregator,
    /// Stores each batch of sums as one block, once.
    Sink,
    /// Answers reads, from memory first.
    Reader,
    /// Checks the stored counts against the log.
    Reconciler {
        #[command(subcommand)]
        command: Reconciler,
    },
    /// Prints the effective configuration, secrets masked.
    Config {
        /// Only check it: exit code 64 and the key's name if it is wrong.
        #[arg(long)]
        check: bool,
    },
    #[cfg(feature = "lab")]
    #[command(flatten)]
    Lab(tally_lab::Command),
}

#[derive(Subcommand)]
pub(crate) enum Reconciler {
    /// Replays the log and compares: exit code 0 if every partition agrees, 1 if one does not, 69
    /// if it could not be checked.
    Verify,
}
