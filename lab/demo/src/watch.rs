//! How far sums and store are, seen from outside: by reading `deltas`, and by the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use tally_platform::config::Config;
use tally_platform::store;
use tally_schemas::{DeltaBatch, wire};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::report::Stage;
use tally_load::Bars;

/// Without any progress for so long, something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);

pub(super) struct Watch {
    config: Arc<Config>,
    started: Instant,
    summing: ProgressBar,
    storing: ProgressBar,
    /// Increments in the batches on `deltas`, and when the last of them came.
    summed: Arc<AtomicU64>,
    tail: JoinHandle<anyhow::Result<()>>,
    _stop: DropGuard,
}

impl Watch {
    pub(super) fn start(config: &Arc<Config>, bars: &Bars, total: u64) -> anyhow::Result<Watch> {
        let (summing, storing) = (bars.bar("summed", total), bars.bar("stored", total));
        let stop = CancellationToken::new();
        let summed = Arc::new(AtomicU64::new(0));
        let tail = {
            let (config, stop, summed, summing) =
                (config.clone(), stop.clone(), summed.clone(), summing.clone());
            tokio::task::spawn_blocking(move || tail(&config, &stop, &summed, &summing))
        };
        let started = Instant::now();
        Ok(Watch {
            config: config.clone(),
            started,
            summing,
            storing,
            summed,
            tail,
            _stop: stop.drop_guard(),
        })
    }

    /// Increments in committed batches so far.
    pub(super) fn summed(&self) -> u64 {
        self.summed.load(Ordering::Relaxed)
    }

    /// Waits until the store has what the log had when this was called; tells how long sums and
    /// store took.
    pub(super) async fn until_stored(self) -> anyhow::Result<(Stage, Stage)> {
        let client = store::client(&self.config.store);
        let ends = {
            let config = self.config.clone();
            tokio::task::spawn_blocking(move || ends(&config)).await??
        };
        let (mut last, mut changed) = (0, Instant::now());
        let mut summed_at = Instant::now();
        loop {
            let ledgers = store::ledgers(&client).await?;
            let stored: i64 = ledgers.values().map(|ledger| ledger.counted_increments).sum();
            self.storing.set_position(stored.cast_unsigned());
            let summed = self.summed.load(Ordering::Relaxed);
            if summed != self.summing.position() || stored != last {
                (last, changed) = (stored, Instant::now());
            }
            if self.summing.position() != summed {
                self.summing.set_position(summed);
                summed_at = Instant::now();
            }
            let there = ends.iter().all(|(partition, end)| {
                ledgers.get(partition).map_or(0, |ledger| ledger.increments.high) >= *end
            });
            if there {
                self.summing.finish();
                self.storing.finish();
                let stage =
                    |name, count, until: Instant| Stage::between(name, count, self.started, until);
                return Ok((
                    stage("summed by the aggregators", summed, summed_at),
                    stage("stored by the sinks", stored.cast_unsigned(), Instant::now()),
                ));
            }
            anyhow::ensure!(
                !self.tail.is_finished(),
                "reading deltas ended: {:?}",
                self.tail.await
            );
            anyhow::ensure!(
                changed.elapsed() < PATIENCE,
                "no progress for {} s: {summed} increments summed, {stored} stored",
                PATIENCE.as_secs()
            );
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The next offset that each partition of `increments` will give.
fn ends(config: &Config) -> anyhow::Result<Vec<(i32, i64)>> {
    let consumer: BaseConsumer =
        tally_kafka::client(&config.kafka.cluster(), "tally-demo").create()?;
    let topic = &config.kafka.increments;
    let partitions = 0..tally_kafka::partition_count(consumer.client(), topic)?;
    partitions.map(|p| Ok((p, tally_kafka::watermarks(consumer.client(), topic, p)?.1))).collect()
}

fn tail(
    config: &Config,
    stop: &CancellationToken,
    summed: &AtomicU64,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    let consumer: BaseConsumer =
        tally_kafka::consumer(&config.kafka.cluster(), "tally-demo", "tally-demo").create()?;
    let mut all = TopicPartitionList::new();
    for partition in 0..tally_kafka::partition_count(consumer.client(), &config.kafka.deltas)? {
        all.add_partition_offset(&config.kafka.deltas, partition, Offset::Offset(0))?;
    }
    consumer.assign(&all)?;
    while !stop.is_cancelled() {
        let Some(message) = consumer.poll(LOOK) else { continue };
        let message = message?;
        let (_, body) = wire::split(message.payload().unwrap_or(b""))?;
        let batch = DeltaBatch::decode(body)?;
        summed.fetch_add(batch.header.increments, Ordering::Relaxed);
        progress.tick();
    }
    Ok(())
}
