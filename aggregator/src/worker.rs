//! One member of the group: polls, folds, decides when to flush, and gives partitions up or takes
//! them on as the group says. All state is this thread's own.

mod startup;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tally_kafka::Rebalance;
use tally_platform::health::{Condition, Heartbeat};
use tally_schemas::wire;
use tokio_util::sync::CancellationToken;

pub(crate) use self::startup::run;
use crate::Error;
use crate::committer::Committer;
use crate::core::{Due, encode};
use crate::folding::Folding;
use crate::metrics::{Metrics, Pending};
use crate::reading::Reading;
use crate::rotation::{Job, Outcome};

/// Messages folded between two looks at everything else.
const MESSAGES_PER_TURN: usize = 4096;
/// The longest wait where there is nothing to do.
const IDLE: Duration = Duration::from_millis(5);
/// Between two questions to a registry that does not answer.
const REGISTRY_RETRY: Duration = Duration::from_millis(500);
/// The longest wait for a flush before the group is served again.
const FLUSH_WAIT: Duration = Duration::from_millis(20);
/// While the group waits for partitions, nothing else is served; the wait goes on as long as the
/// flush takes.
const LET_GO_WAIT: Duration = Duration::from_secs(1);

struct Worker<'c> {
    schema_id: u32,
    topic_id: String,
    /// Before the reading, which is dropped after it: the flush in flight must be through when the
    /// partitions are let go.
    committer: Committer,
    reading: Reading<'c>,
    folding: Folding,
    /// Partitions that wait for the registry: what stands before the body of the message that they
    /// wait with.
    stalled: BTreeMap<i32, Vec<u8>>,
    retry_at: Instant,
    /// The flush in flight, and since when.
    pending: Option<(Pending, Instant)>,
    metrics: Metrics,
    ready: Condition,
    commits: Condition,
    heartbeat: Heartbeat,
}

impl Worker<'_> {
    fn run(mut self, stop: &CancellationToken) -> Result<(), Error> {
        self.commits.set(true, "");
        let mut wait = Duration::ZERO;
        while !stop.is_cancelled() {
            self.heartbeat.beat();
            if let Some(stray) = self.reading.serve(wait)? {
                tracing::info!(
                    partition = stray,
                    "read the partition again: a message came another way"
                );
                self.restart(stray)?;
            }
            self.carry_out_decisions()?;
            if let Some(outcome) = self.committer.poll() {
                self.settle(outcome?);
            }
            self.start_found()?;
            self.ask_again()?;
            self.flush_if_due()?;
            wait = if self.fold_messages()? { Duration::ZERO } else { IDLE };
        }
        self.leave()
    }

    /// Folds what is there, up to a limit; `false` if that was nothing.
    fn fold_messages(&mut self) -> Result<bool, Error> {
        let now = Instant::now();
        let mut stalled = None;
        let mut folded = 0;
        while folded < MESSAGES_PER_TURN && self.folding.core.due() != Due::Now {
            let Some(message) = self.reading.fetch() else { break };
            let message = message?;
            folded += 1;
            if let Err(error) = self.folding.fold(&message, now) {
                let (partition, offset) = (message.partition, message.offset);
                tracing::warn!(%error, partition, offset, "the partition waits for the schema registry");
                let payload = message.payload.unwrap_or(b"");
                stalled =
                    Some((partition, payload[..wire::PREFIX_BYTES.min(payload.len())].to_vec()));
                break;
            }
        }
        if let Some((partition, prefix)) = stalled {
            self.reading.set_aside(partition);
            self.stalled.insert(partition, prefix);
            self.retry_at = now + REGISTRY_RETRY;
        }
        self.folding.core.measure();
        while let Some(rebuilt) = self.folding.core.next_rebuilt() {
            self.metrics.rebuilt(&rebuilt);
            tracing::info!(%rebuilt, "ids remembered again");
        }
        Ok(folded > 0)
    }

    /// Asks the registry again for the schemas that partitions wait for.
    fn ask_again(&mut self) -> Result<(), Error> {
        if self.stalled.is_empty() || Instant::now() < self.retry_at {
            return Ok(());
        }
        while let Some((partition, prefix)) = self.stalled.pop_first() {
            if let Err(error) = self.folding.learn(partition, &prefix) {
                tracing::debug!(%error, partition, "the partition still waits for the schema registry");
                self.stalled.insert(partition, prefix);
                self.retry_at = Instant::now() + REGISTRY_RETRY;
                return Ok(());
            }
            tracing::info!(partition, "the schema registry answers again");
            self.restart(partition)?;
        }
        Ok(())
    }

    /// Reads a partition on from where its fold is.
    fn restart(&mut self, partition: i32) -> Result<(), Error> {
        let Some(next) = self.folding.core.next(partition) else { return Ok(()) };
        self.reading.start(&[(partition, next)])
    }

    /// Starts a flush when one is due and the last one is through; where a limit is reached, waits
    /// a little for that.
    fn flush_if_due(&mut self) -> Result<(), Error> {
        match self.folding.core.due() {
            Due::Never => Ok(()),
            Due::At(when) if Instant::now() >= when && self.committer.is_idle() => {
                self.flush(|_| true)
            }
            Due::At(_) => Ok(()),
            Due::Now => {
                if let Some(outcome) = self.committer.wait(FLUSH_WAIT) {
                    self.settle(outcome?);
                }
                // A commit may wait for the coordinator for long; the group and the other
                // partitions are served meanwhile.
                if self.committer.is_idle() { self.flush(|_| true) } else { Ok(()) }
            }
        }
    }

    /// Hands what the `wanted` partitions hold to the committer, which must be idle.
    fn flush(&mut self, wanted: impl Fn(i32) -> bool) -> Result<(), Error> {
        let started = Instant::now();
        let (flushes, rejected) = self.folding.core.take(wanted);
        if flushes.is_empty() {
            return Ok(());
        }
        let mut pending =
            Pending { rejected: rejected.iter().map(|r| r.reason).collect(), ..Pending::default() };
        let mut batches = Vec::with_capacity(flushes.len());
        // Where a partition has several batches, the last one's end.
        let mut ends = BTreeMap::new();
        for (partition, flush) in flushes {
            pending.messages += flush.counted + flush.duplicate + flush.rejected;
            pending.increments += flush.increments;
            pending.deltas += flush.sums.len() as u64;
            pending.add_duplicates(flush.duplicates);
            batches.push((partition, encode(self.schema_id, &self.topic_id, partition, &flush)));
            ends.insert(partition, flush.to);
            self.folding.core.reuse(partition, flush.sums);
        }
        let core = &mut self.folding.core;
        let member = self.reading.member().cloned();
        let offsets = self.reading.marked(
            ends.into_iter()
                .map(|(partition, end)| (partition, end, core.bookmark(partition, end))),
        )?;
        self.committer.submit(Job { batches, rejected, offsets, member });
        self.pending = Some((pending, started));
        Ok(())
    }

    /// Waits for the flush in flight, if there is one.
    fn wait_for_flush(&mut self) -> Result<(), Error> {
        while !self.committer.is_idle() {
            self.heartbeat.beat();
            if let Some(outcome) = self.committer.wait(LET_GO_WAIT) {
                self.settle(outcome?);
            }
        }
        Ok(())
    }

    fn settle(&mut self, outcome: Outcome) {
        let (pending, started) = self.pending.take().expect("a flush was in flight");
        match outcome {
            Outcome::Committed => {
                self.commits.set(true, "");
                self.metrics.committed(&pending, started.elapsed().as_secs_f64());
                for (partition, remembered) in self.folding.core.remembered() {
                    self.metrics.remembered(partition, &remembered);
                }
            }
            Outcome::NotCommitted(reason) => {
                self.metrics.not_committed();
                self.commits.set(false, reason);
                self.rewind();
            }
            // It may still commit, also while this process stops: who counts the partitions next,
            // waits for that.
            Outcome::Undecided(reason) => {
                self.metrics.not_committed();
                self.commits.set(false, reason);
                self.forget(&self.reading.held());
                self.reading.stand_still();
            }
        }
    }

    /// Drops every sum, and reads on from the committed offsets.
    fn rewind(&mut self) {
        let partitions: Vec<i32> = self.folding.core.partitions().collect();
        self.forget(&partitions);
        self.reading.look_again(&partitions);
    }

    fn forget(&mut self, partitions: &[i32]) {
        for partition in partitions {
            self.folding.core.forget(*partition);
            self.metrics.forgotten(*partition);
            self.stalled.remove(partition);
        }
    }

    /// Starts each partition whose position is found at its committed offset, or where the ids
    /// begin that are remembered there.
    fn start_found(&mut self) -> Result<(), Error> {
        let starts = self.reading.found()?;
        if starts.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        for start in &starts {
            self.folding.core.assign(start, now);
        }
        let from: Vec<_> = starts.iter().map(|start| (start.partition, start.read_from)).collect();
        tracing::info!(?from, "reading on");
        self.ready.set(true, "");
        self.reading.start(&from)
    }

    fn carry_out_decisions(&mut self) -> Result<(), Error> {
        while let Some(decision) = self.reading.next_decision() {
            match decision {
                Rebalance::Assign(partitions) => {
                    self.renew_member()?;
                    self.reading.hold(&partitions)?;
                    if partitions.is_empty() {
                        self.ready.set(true, "");
                    }
                }
                Rebalance::Revoke(partitions) => self.let_go(&partitions)?,
            }
            let now = self.folding.core.partitions().collect::<Vec<_>>();
            tracing::info!(partitions = ?now, "assignment changed");
        }
        Ok(())
    }

    /// Where this consumer was left out of the group and came back, others may have counted
    /// meanwhile what it has read.
    fn renew_member(&mut self) -> Result<(), Error> {
        if !self.reading.joined_anew() {
            return Ok(());
        }
        self.wait_for_flush()?;
        let held = self.reading.held();
        if !held.is_empty() {
            tracing::info!(partitions = ?held, "joined the group anew: read again what was held before");
            self.forget(&held);
            self.reading.look_again(&held);
        }
        self.reading.renew_member();
        Ok(())
    }

    /// Finishes the partitions' flushes before others may have them; where they are lost already,
    /// drops their sums.
    fn let_go(&mut self, partitions: &[i32]) -> Result<(), Error> {
        self.wait_for_flush()?;
        if !self.reading.is_lost() {
            self.flush(|partition| partitions.contains(&partition))?;
            self.wait_for_flush()?;
        }
        self.forget(partitions);
        self.reading.let_go(partitions)
    }

    /// Flushes everything, and leaves the group.
    fn leave(&mut self) -> Result<(), Error> {
        self.ready.set(false, "stopping");
        self.carry_out_decisions()?;
        self.wait_for_flush()?;
        self.flush(|_| true)?;
        self.wait_for_flush()?;
        self.reading.leave();
        tracing::info!("worker drained");
        Ok(())
    }
}
