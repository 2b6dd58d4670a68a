//! Load that goes on in the background while a test does harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::model::{Event, Model};
use crate::source::Source;
use crate::wait::until;

const BATCH: usize = 20;
const PACE: Duration = Duration::from_millis(4);
/// 2026-01-01T00:00:00Z: events fall into the few hours after it.
const FIRST_EVENT_MS: i64 = 1_767_225_600_000;
const SPAN_MS: usize = 3 * 3_600_000;

/// Random increments: some counters hot, most not, some sums negative.
pub(crate) fn random_events(dice: &mut Dice, count: usize) -> Vec<Event> {
    let one = |dice: &mut Dice| {
        let namespace = ["web", "app", "計"][dice.roll(3)];
        let range = 1 << (1 + dice.roll(9));
        let key = format!("key-{}", dice.roll(range));
        let delta = dice.roll(110) as i64 - 10;
        Event::new(namespace, &key, delta, FIRST_EVENT_MS + dice.roll(SPAN_MS) as i64)
    };
    (0..count).map(|_| one(dice)).collect()
}

/// Sends batches to all partitions in turn, a few hundred a second, each acknowledged before the
/// next.
pub(crate) struct Feeder {
    stop: CancellationToken,
    sent: Arc<AtomicU64>,
    task: JoinHandle<Model>,
}

impl Feeder {
    pub(crate) fn start(source: &Source, seed: u64) -> Feeder {
        let (stop, sent) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(feed(source.clone(), Dice(seed), stop.clone(), Arc::clone(&sent)));
        Feeder { stop, sent, task }
    }

    /// Increments that the log has.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until the load has gone on, so that what was done before was done under load.
    pub(crate) async fn goes_on(&self) {
        let before = self.sent();
        until("the load to go on", async || {
            if self.sent() > before { Ok(()) } else { Err("nothing was sent") }
        })
        .await;
    }

    /// What was sent in all.
    pub(crate) async fn stop(self) -> Model {
        self.stop.cancel();
        match self.task.await {
            Ok(model) => model,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

async fn feed(
    source: Source,
    mut dice: Dice,
    stop: CancellationToken,
    sent: Arc<AtomicU64>,
) -> Model {
    let mut model = Model::default();
    let mut pace = tokio::time::interval(PACE);
    for partition in (0..source.partitions()).cycle() {
        if stop.is_cancelled() {
            break;
        }
        pace.tick().await;
        let events = random_events(&mut dice, BATCH);
        source.batch(partition, &events).await;
        model.add_all(&events);
        sent.fetch_add(BATCH as u64, Ordering::Relaxed);
    }
    model
}
