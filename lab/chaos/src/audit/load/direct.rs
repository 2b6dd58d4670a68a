//! Messages by Kafka producers: singles, batches, and what is to be rejected, each way a lane of
//! its own.
//!
//! ```text
//!  LoadPlan ─► Pace ─► Client ─► increments
//!            │        ▲
//!            └► copies, some seconds later, to the same partition
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use tokio_util::sync::CancellationToken;

use super::client::{Client, EnqueueResult, Outgoing};
use super::pace::Pace;
use crate::audit::content::{Content, Route};
use crate::audit::live_record::LiveRecord;

/// The latest that a message is sent once more.
const COPIED_WITHIN_MS: u64 = 20_000;
const MOST_COPIES_WAITING: usize = 10_000;
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct KafkaWriter {
    pub(super) way: Route,
    pub(super) per_second: f64,
    pub(super) partitions: i32,
    pub(super) client: Client,
    pub(super) record: Arc<LiveRecord>,
}

impl KafkaWriter {
    /// Sends until it is stopped, then waits for what is under way.
    pub(super) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut pace = Pace::new(self.per_second, Instant::now());
        let mut copies: BTreeSet<(Instant, u32)> = BTreeSet::new();
        for number in 0.. {
            let message = self.message(number);
            let due = pace.take(message.increments, Instant::now());
            while let Some(&(copy_due, mark)) = copies.first()
                && copy_due <= due
            {
                copies.pop_first();
                if !wait_until(copy_due, &stop).await {
                    break;
                }
                self.copy(mark, &stop).await?;
            }
            if !wait_until(due, &stop).await {
                break;
            }
            let mark =
                self.record.attempt(self.way, number, message.clock_ms, message.content.as_ref());
            let (partition, again_after) = match message.fate {
                Some(fate) => (Some(fate.partition), fate.again_after),
                None => (None, Vec::new()),
            };
            self.send(Outgoing { mark, partition, payload: &message.payload }, &stop).await?;
            if copies.len() < MOST_COPIES_WAITING {
                copies.extend(again_after.into_iter().map(|after| (Instant::now() + after, mark)));
            }
        }
        let client = self.client;
        tokio::task::spawn_blocking(move || client.finish()).await?
    }

    fn message(&self, number: u32) -> PreparedMessage {
        let plan = &self.record.plan;
        let clock_ms = self.record.clock_ms();
        if self.way == Route::Bad {
            let payload = plan.bad(number, clock_ms).payload;
            return PreparedMessage { clock_ms, content: None, increments: 1, fate: None, payload };
        }
        let content = plan.content(self.way, number, clock_ms);
        PreparedMessage {
            clock_ms,
            increments: content.batch.increments.len(),
            fate: content.repeats.then(|| self.fate(number)),
            payload: plan.payload(&content),
            content: Some(content),
        }
    }

    fn fate(&self, number: u32) -> Resends {
        let mut dice = self.record.plan.fate(self.way, number);
        let partition = dice.random_range(0..self.partitions);
        let times = 1 + dice.random_range(0..2);
        let again_after =
            (0..times).map(|_| Duration::from_millis(dice.random_range(0..COPIED_WITHIN_MS)));
        Resends { partition, again_after: again_after.collect() }
    }

    async fn copy(&mut self, of: u32, stop: &CancellationToken) -> anyhow::Result<()> {
        let original = self.record.entry(of);
        let payload = {
            let plan = &self.record.plan;
            plan.payload(&plan.content(original.way, original.number, original.clock_ms))
        };
        let partition = Some(self.fate(original.number).partition);
        let mark = self.record.attempt_copy(of);
        self.send(Outgoing { mark, partition, payload: &payload }, stop).await
    }

    /// Waits while the client's queue is full; a message that never gets into it stays unsettled,
    /// as one that was lost would.
    async fn send(
        &mut self,
        outgoing: Outgoing<'_>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        while self.client.send(outgoing).await? == EnqueueResult::Full {
            if !wait_until(Instant::now() + QUEUE_FULL_PAUSE, stop).await {
                break;
            }
        }
        Ok(())
    }
}

struct PreparedMessage {
    clock_ms: i64,
    content: Option<Content>,
    increments: usize,
    fate: Option<Resends>,
    payload: Vec<u8>,
}

/// What happens to a message that counts once: the same content goes to the same partition several
/// times.
struct Resends {
    partition: i32,
    again_after: Vec<Duration>,
}

/// Waits until that time; false if the load is stopped before.
pub(super) async fn wait_until(due: Instant, stop: &CancellationToken) -> bool {
    if stop.is_cancelled() {
        return false;
    }
    if due <= Instant::now() {
        return true;
    }
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep_until(due.into()) => true,
    }
}
