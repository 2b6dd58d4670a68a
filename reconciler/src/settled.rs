//! Waiting until what is in a topic is decided.
//!
//! ```text
//!  ─────────── committed, aborted ──────────► stable ── open transactions, decided ones behind them ──► high
//!                                             └─ a reader of committed messages ends here
//! ```
//!
//! A transaction's markers are written partition by partition, after it was decided: on one topic
//! it can be read already, on another not yet.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_kafka::TRANSACTION_TIMEOUT;
use tally_platform::config;

use crate::Error;

/// By then the coordinator, which looks every ten seconds, has aborted what was left open.
const PATIENCE: Duration = TRANSACTION_TIMEOUT.saturating_add(Duration::from_secs(20));
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until readers of committed messages get as far as each partition reaches now. Blocks the
/// thread.
pub(crate) fn settled(kafka: &config::Kafka, topic: &str, partitions: i32) -> Result<(), Error> {
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
