//! Waits until every transaction that has written to a topic has ended.
//!
//! ```text
//!  ────── committed, aborted ──────► last stable offset ── open transactions, ──► high watermark
//!                                    └─ a reader of        ended ones behind them
//!                                       committed messages ends here
//! ```
//!
//! When a transaction has ended, its markers are written to one partition after the other: its
//! messages may be readable on one topic and not yet on another.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_kafka::TRANSACTION_TIMEOUT;
use tally_platform::config;

use crate::Error;

/// By then Kafka's transaction coordinator, which looks every ten seconds, has aborted every
/// transaction that was left open.
const PATIENCE: Duration = TRANSACTION_TIMEOUT.saturating_add(Duration::from_secs(20));
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until readers of committed messages can read up to where each partition ends now. Blocks
/// the thread.
pub(crate) fn wait_for_open_transactions(
    kafka: &config::Kafka,
    topic: &str,
    partitions: i32,
) -> Result<(), Error> {
    let client = |isolation: &str| -> Result<BaseConsumer, Error> {
        tally_kafka::client(&kafka.cluster(), "tally-reconciler")
            .set("isolation.level", isolation)
            .create()
            .map_err(Error::kafka("make a consumer"))
    };
    let (all, committed) = (client("read_uncommitted")?, client("read_committed")?);
    let end = |of: &BaseConsumer, partition| tally_kafka::watermarks(of.client(), topic, partition);
    let highs = (0..partitions)
        .map(|partition| Ok((partition, end(&all, partition)?.1)))
        .collect::<Result<Vec<_>, Error>>()?;
    let begun = Instant::now();
    for (partition, high) in highs {
        loop {
            let (_, stable) = end(&committed, partition)?;
            if stable >= high {
                break;
            }
            if begun.elapsed() >= PATIENCE {
                let (topic, seconds) = (topic.to_owned(), PATIENCE.as_secs());
                return Err(Error::OpenTransaction { topic, partition, stable, high, seconds });
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}
