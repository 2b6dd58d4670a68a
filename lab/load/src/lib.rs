//! `tally load`: increments by the million, as client libraries send them, and the checksum of what
//! was sent.
//!
//! ```text
//!  Workload: keys, picks ──► Sender: Avro bodies, the rate ──► increments, partition by partition
//!                               └──► Checksum: sums of the open bucket ──► fingerprint ──► Summary
//! ```
//!
//! For a seed and a fixed event time the log is the same each time, byte by byte and partition by
//! partition.

mod bars;
mod checksum;
mod deliveries;
mod sender;
mod summary;
mod workload;

use anyhow::Context;
use indicatif::MultiProgress;
use serde::de::DeserializeOwned;
use tally_platform::config::Config;
use tally_platform::process::signals;
use tally_platform::registry::Registry;
use tally_schemas::avsc;
use tokio_util::sync::CancellationToken;

pub use self::bars::Bars;
pub use self::deliveries::Deliveries;
use self::sender::Sender;
pub use self::summary::Summary;
use self::workload::MAX_KEYS;
pub use self::workload::{Distribution, Workload};

#[derive(Debug, Clone, clap::Args)]
pub struct LoadArgs {
    /// Increments a second [default: as many as go].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,

    /// Stop after so many increments [default: at Ctrl-C].
    #[arg(long, value_name = "INCREMENTS")]
    count: Option<u64>,

    /// Stop after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,

    /// Increments in a message; 0 sends single increments.
    #[arg(long, value_name = "INCREMENTS", default_value_t = 500)]
    #[arg(value_parser = clap::value_parser!(u64).range(..=50_000))]
    batch: u64,

    /// Different counters.
    #[arg(long, default_value_t = 1_000_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_KEYS)))]
    keys: u32,

    /// Namespaces that the keys are spread over.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    namespaces: u32,

    /// How often each key comes.
    #[arg(long, value_enum, default_value_t = Distribution::Zipf)]
    distribution: Distribution,

    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Give each increment an id, made of the seed and its number: the same again counts once.
    #[arg(long)]
    ids: bool,

    /// Event time of the first increment, in milliseconds since 1970; the others follow at the
    /// rate, or at a million a second [default: the clock's].
    #[arg(long, value_name = "MILLISECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=4_294_967_295_000))]
    at: Option<u64>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl LoadArgs {
    fn batch(&self) -> Option<u64> {
        (self.batch > 0).then_some(self.batch)
    }
}

/// Sends, and prints what was sent; an error when Kafka did not take everything.
pub async fn run(args: LoadArgs, config: Config) -> anyhow::Result<()> {
    let registry = Registry::new(&config.registry)?;
    let subject = format!("{}-value", config.kafka.increments);
    let (subject, schema) = match args.batch() {
        Some(_) => (avsc::INCREMENT_BATCH_SUBJECT, avsc::INCREMENT_BATCH),
        None => (subject.as_str(), avsc::INCREMENT),
    };
    let schema_id = registry.register(subject, schema).await?;
    let json = args.json;
    let bars = Bars::new(MultiProgress::new());
    let expected = match (args.count, args.rate, args.seconds) {
        (Some(count), ..) => count,
        (None, Some(rate), Some(seconds)) => rate * seconds,
        (None, ..) => 0,
    };
    let bar = bars.bar("sent", expected);
    if expected == 0 {
        bar.unset_length();
    }
    let stop = CancellationToken::new();
    let sending = {
        let (stop, bar) = (stop.clone(), bar.clone());
        tokio::task::spawn_blocking(move || {
            let workload = Workload::new(args.keys, args.namespaces, args.distribution, args.seed);
            Sender::new(&config, &workload, &args, schema_id)?.run(&stop, &bar)
        })
    };
    let signals = tokio::spawn(signals(stop));
    let summary = if json { sending.await } else { bars.beside(sending).await };
    signals.abort();
    bars.clear();
    let summary = summary??;
    if json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        println!("{summary}");
    }
    let lost = summary.increments - summary.acknowledged;
    anyhow::ensure!(lost == 0, "Kafka did not acknowledge {lost} increments");
    Ok(())
}

/// What a service answers in JSON; an error holds what it answered instead.
pub async fn answer<T: DeserializeOwned>(
    who: &str,
    request: reqwest::RequestBuilder,
) -> anyhow::Result<T> {
    let response = request.send().await?;
    let status = response.status();
    let text = response.text().await?;
    anyhow::ensure!(status.is_success(), "{who} answered {status}: {text}");
    serde_json::from_str(&text).with_context(|| format!("read {text:?}"))
}
