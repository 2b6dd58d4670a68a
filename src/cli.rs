use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    /// Replays the log, from the checkpoints on, and compares every counter with ClickHouse. Writes
    /// nothing but checkpoints, where `reconciler.key_file` names a key. Exit code 0 if every
    /// partition agrees, 1 if one does not, 3 if nothing contradicts but not all that was committed
    /// is proven, 69 if it could not be checked.
    Verify(Verify),
    /// Verifies for ever, what is new in each round, and signs checkpoints now and then. A service:
    /// metrics say through which offset each partition is proven, and whether one does not agree;
    /// then it is not ready.
    Watch,
    /// Prints the newest checkpoint of each partition, a line of JSON each, for `verify
    /// --checkpoints FILE`.
    Checkpoints,
}

#[derive(Args)]
pub(crate) struct Verify {
    /// Only this partition of `increments`; may be given several times.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) partition: Vec<i32>,
    /// Compare only the counters of this namespace; every message is replayed all the same.
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Compare only buckets that start at this time or later, such as 2026-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<jiff::Timestamp>,
    /// Compare only buckets that start before this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<jiff::Timestamp>,
    /// How old a committed batch may be that ClickHouse does not have yet, in seconds [default: ten
    /// flush intervals].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_lag: Option<u64>,
    /// How many messages of a partition may have been rejected for what the gateway refuses
    /// [default: any number].
    #[arg(long, value_name = "MESSAGES")]
    pub(crate) max_rejected: Option<u64>,
    /// Replay every message, whatever the checkpoints say.
    #[arg(long, conflicts_with = "checkpoints")]
    pub(crate) from_beginning: bool,
    /// Begin at these exported checkpoints, and not at those that Kafka keeps.
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoints: Option<PathBuf>,
    /// Sign no checkpoint.
    #[arg(long)]
    pub(crate) sign_nothing: bool,
    /// Print the report as one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}
