//! One member of the group: polls, folds, decides when to flush, and takes partitions on or gives
//! them up as the group says. All state is this thread's own.

mod backlog;
mod flush_delay;
mod standstills;
mod startup;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tally_kafka::{Rebalance, TRANSACTION_TIMEOUT, Unreadable};
use tally_platform::closing;
use tally_platform::health::{Condition, Heartbeat};
use tally_platform::unserved::UnservedPartitions;
use tokio_util::sync::CancellationToken;

use self::backlog::{Backlog, Sources};
use self::flush_delay::FlushDelay;
use self::standstills::Standstills;
pub(crate) use self::startup::run;
use crate::Error;
use crate::committer::Committer;
use crate::group_consumer::{Commit, GroupConsumer};
use crate::last_epochs::LastEpochs;
use crate::locator;
use crate::message_fold::{MessageFold, SchemaMissing};
use crate::metrics::{Metrics, PendingFlush};
use crate::partitions::{Action, Due, Event, Gone, Partitions, encode};
use crate::producer_rotation::{FlushJob, FlushOutcome};
use crate::schema_asks::{Answer, SchemaAsks};

/// Messages folded between two looks at everything else.
const MESSAGES_PER_TURN: usize = 4096;
/// The longest wait where there is nothing to do.
const IDLE: Duration = Duration::from_millis(5);
/// The pause between two questions to a registry that does not answer.
const REGISTRY_RETRY: Duration = Duration::from_millis(500);
/// The longest wait for a flush before the group is served again.
const FLUSH_WAIT: Duration = Duration::from_millis(20);
/// The longest wait between two heartbeats while partitions are given up. Nothing else is served
/// then, because the group waits for the partitions; the wait goes on for as long as the flush
/// takes.
const LET_GO_WAIT: Duration = Duration::from_secs(1);

struct Worker<'c> {
    schema_id: u32,
    topic_id: String,
    /// The committer stands before the consumer, so that it is dropped first: the flush in flight
    /// must be over when the partitions are let go.
    committer: Committer,
    consumer: GroupConsumer<'c>,
    partitions: Partitions,
    epochs: LastEpochs,
    messages: MessageFold,
    schemas: SchemaAsks,
    /// The flush in flight, and when it was taken.
    pending: Option<(PendingFlush, Instant)>,
    metrics: Metrics,
    ready: Condition,
    commits: FlushDelay,
    standstills: Standstills,
    unserved: UnservedPartitions,
    backlog: Backlog,
    heartbeat: Heartbeat,
}

impl Worker<'_> {
    fn run(mut self, stop: &CancellationToken, closing: &closing::Part) -> Result<(), Error> {
        let _watch = closing.watch_for_panics();
        let ended = self.work(stop);
        closing.begin(&ended);
        ended
    }

    fn work(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let mut wait = Duration::ZERO;
        while !stop.is_cancelled() {
            self.heartbeat.beat();
            if let Some(stray) = self.consumer.serve(wait)? {
                tracing::info!(
                    partition = stray,
                    "a message came past the fetcher: reading its partition again"
                );
                self.step(stray, Event::Strayed)?;
            }
            self.carry_out_decisions()?;
            if let Some(outcome) = self.committer.poll() {
                self.settle(outcome?)?;
            }
            self.start_located()?;
            self.take_schemas()?;
            self.flush_if_due()?;
            self.unserved.tell(|| self.consumer.unserved());
            self.look_for_delays();
            wait = if self.fold_messages()? { Duration::ZERO } else { IDLE };
        }
        self.leave()
    }

    fn look_for_delays(&mut self) {
        if let Some((_, started)) = &self.pending {
            self.commits.look(*started);
        }
        let Worker { backlog, consumer, partitions, standstills, .. } = self;
        let position = |partition| consumer.position(partition);
        let oldest_ms = |partition| partitions.oldest_ms(partition);
        let standing_ms = |partition| standstills.since_ms(partition);
        backlog.tell(|| Sources {
            states: partitions.states(),
            ends: consumer.ends(),
            position: &position,
            oldest_ms: &oldest_ms,
            standing_ms: &standing_ms,
        });
    }

    /// Moves a partition to its next state, and tells fetcher and locator.
    fn step(&mut self, partition: i32, event: Event) -> Result<(), Error> {
        let action = self.partitions.step(partition, event, Instant::now());
        self.consumer.carry_out(&[(partition, action)])
    }

    /// Moves each of these partitions on by the same event, which drops what is summed of it.
    fn step_all(&mut self, partitions: &[i32], event: fn() -> Event) -> Result<(), Error> {
        let now = Instant::now();
        let step = |partition: &i32| (*partition, self.partitions.step(*partition, event(), now));
        let actions: Vec<(i32, Action)> = partitions.iter().map(step).collect();
        for partition in partitions {
            self.backlog.forget(*partition);
            self.metrics.forgotten(*partition);
            self.standstills.wait_is_over(*partition);
        }
        self.consumer.carry_out(&actions)
    }

    fn forget_standstills(&mut self, partitions: &[i32]) {
        partitions.iter().for_each(|partition| self.standstills.forget(*partition));
    }

    /// Stops a partition that the fetcher cannot read on; what is summed of it is flushed.
    fn stop_unreadable(&mut self, unreadable: Unreadable) -> Result<(), Error> {
        let partition = unreadable.partition;
        let error = self.consumer.reason_to_stop(unreadable)?;
        self.standstills.stopped(partition, &error);
        self.step(partition, Event::Unreadable)
    }

    /// Folds the messages that are there, up to a limit; `false` if there were none.
    fn fold_messages(&mut self) -> Result<bool, Error> {
        let now = Instant::now();
        // The schema that each partition waits for whose messages cannot be folded any further.
        let mut missing = BTreeMap::new();
        let mut unreadable = None;
        let mut folded = 0;
        while folded < MESSAGES_PER_TURN && self.partitions.due() != Due::Now {
            let Some(message) = self.consumer.fetch() else { break };
            let message = match message {
                Ok(message) => message,
                Err(error) => {
                    unreadable = Some(error);
                    break;
                }
            };
            folded += 1;
            let partition = message.partition;
            if missing.contains_key(&partition) {
                // It is read again later; what it will wait for next is asked for already.
                if let Some(schema) = self.messages.to_ask(&message) {
                    self.schemas.ask_ahead(schema, self.messages.pause(schema));
                }
                continue;
            }
            match self.messages.fold(&mut self.partitions, &message, now) {
                Ok(()) => self.epochs.note(partition, message.leader_epoch),
                Err(SchemaMissing { schema }) => drop(missing.insert(partition, schema)),
            }
        }
        for (partition, schema) in missing {
            self.step(partition, Event::SchemaMissing { schema })?;
            let is_refused = self.messages.is_refused(schema);
            let pause = if is_refused { REGISTRY_RETRY } else { self.messages.pause(schema) };
            self.schemas.ask(schema, pause);
        }
        if let Some(unreadable) = unreadable {
            self.stop_unreadable(unreadable)?;
        }
        self.partitions.measure();
        while let Some(restored) = self.partitions.next_restored() {
            self.metrics.restored(&restored);
            tracing::info!(%restored, "ids remembered again");
            if let Some(Gone { messages, offset, schema }) = restored.gone {
                tracing::error!(
                    partition = restored.partition,
                    messages,
                    offset,
                    schema,
                    "the ids of messages are not remembered: the registry does not have the schema \
                     of the first of them, at this offset, any more; the partition goes on, and \
                     what has one of these ids counts again"
                );
            }
        }
        Ok(folded > 0)
    }

    /// Reads on the partitions whose schemas have come, and asks again for those that have not.
    fn take_schemas(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        while let Some(Answer { schema, said, .. }) = self.schemas.next() {
            let of = |(partition, waits_for)| (waits_for == schema).then_some(partition);
            let waiting: Vec<i32> = self.partitions.waiting().filter_map(of).collect();
            let unanswered = said.map(|said| self.messages.learn(schema, said)).err();
            if unanswered.is_none() && !self.messages.is_judged(schema) {
                // The registry may lag: it has to say once more that there is no such schema.
                let pause = self.messages.pause(schema);
                if waiting.is_empty() {
                    self.schemas.ask_ahead(schema, pause);
                } else {
                    self.schemas.ask(schema, pause);
                }
                continue;
            }
            let is_refused = self.messages.is_refused(schema);
            for partition in waiting {
                let is_gone = is_refused && self.partitions.waits_for_gone(partition, now);
                let reason = match &unanswered {
                    Some(error) => error.to_string(),
                    None if is_gone => format!(
                        "the ids of a message cannot be restored, since its schema is gone: \
                         the registry has no schema {schema}"
                    ),
                    None => {
                        if self.standstills.wait_is_over(partition) {
                            tracing::info!(
                                partition,
                                "the schema registry answers again: reading the partition on"
                            );
                        }
                        self.step(partition, Event::SchemaLearned)?;
                        continue;
                    }
                };
                self.standstills.waits(partition, &reason);
                self.schemas.ask(schema, REGISTRY_RETRY);
            }
        }
        Ok(())
    }

    /// Starts a flush when one is due and the last one is over; where a limit is reached, waits a
    /// little for that.
    fn flush_if_due(&mut self) -> Result<(), Error> {
        match self.partitions.due() {
            Due::Never => Ok(()),
            Due::At(when) if Instant::now() >= when && self.committer.is_idle() => {
                self.flush(|_| true)
            }
            Due::At(_) => Ok(()),
            Due::Now => {
                if let Some(outcome) = self.committer.wait(FLUSH_WAIT) {
                    self.settle(outcome?)?;
                }
                // A commit may wait for the coordinator for long; the group and the other
                // partitions are served meanwhile.
                if self.committer.is_idle() {
                    self.flush(|_| true)?;
                    // What was fetched of one partition may take many small flushes. The others do
                    // not wait for all of them.
                    let are_short = self.partitions.flush_size().is_reduced();
                    self.consumer.short_turns(are_short);
                }
                Ok(())
            }
        }
    }

    /// Hands what the `wanted` partitions hold to the committer, which must be idle.
    fn flush(&mut self, wanted: impl Fn(i32) -> bool) -> Result<(), Error> {
        let started = Instant::now();
        let (flushes, rejected) = self.partitions.take(wanted);
        if flushes.is_empty() {
            return Ok(());
        }
        let mut pending = PendingFlush::of(&rejected);
        let mut batches = Vec::with_capacity(flushes.len());
        // Where a partition has several batches, the last one's end.
        let mut ends = BTreeMap::new();
        for (partition, flush) in flushes {
            pending.add(&flush);
            batches.push((partition, encode(self.schema_id, &self.topic_id, partition, &flush)));
            ends.insert(partition, flush.to);
            self.partitions.reuse(partition, flush.sums);
        }
        for (partition, end) in &ends {
            self.backlog.flushed(*partition, *end, self.partitions.take_oldest_ms(*partition));
        }
        let Worker { partitions, epochs, .. } = self;
        let commits = ends.into_iter().map(|(partition, next)| Commit {
            partition,
            next,
            leader_epoch: epochs.of(partition),
            bookmark: partitions.bookmark(partition, next),
        });
        let offsets = self.consumer.marked(commits)?;
        let member = self.consumer.member().cloned();
        self.committer.submit(FlushJob { batches, rejected, offsets, member });
        self.pending = Some((pending, started));
        Ok(())
    }

    /// Waits for the flush in flight, if there is one.
    fn wait_for_flush(&mut self) -> Result<(), Error> {
        while !self.committer.is_idle() {
            self.heartbeat.beat();
            self.look_for_delays();
            if let Some(outcome) = self.committer.wait(LET_GO_WAIT) {
                self.settle(outcome?)?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, outcome: FlushOutcome) -> Result<(), Error> {
        let (pending, started) = self.pending.take().expect("a flush was in flight");
        self.fit_flushes(&outcome, pending.bytes(), started.elapsed());
        self.backlog.settled(matches!(outcome, FlushOutcome::Committed));
        match outcome {
            FlushOutcome::Committed => {
                self.commits.committed();
                self.metrics.committed(&pending, started.elapsed().as_secs_f64());
                for (partition, remembered) in self.partitions.remembered() {
                    self.metrics.remembered(partition, &remembered);
                }
                Ok(())
            }
            // Every sum is dropped, and the partitions are read on from the committed offsets.
            FlushOutcome::NotCommitted(reason) | FlushOutcome::Late(reason) => {
                self.metrics.not_committed();
                self.commits.failed(reason);
                self.step_all(&self.partitions.located(), || Event::Rewound)
            }
            // The flush may still commit, also while this process stops. Whoever counts the
            // partitions next waits for that.
            FlushOutcome::Undecided(reason) => {
                self.metrics.not_committed();
                self.commits.failed(reason);
                self.step_all(&self.partitions.held(), || Event::Parked)
            }
        }
    }

    /// Fits the size of the next flushes to what gets through to Kafka within a transaction's time.
    fn fit_flushes(&mut self, outcome: &FlushOutcome, held_bytes: usize, took: Duration) {
        let size = self.partitions.flush_size();
        match outcome {
            FlushOutcome::Late(_) if size.reduce(held_bytes) => tracing::warn!(
                held_bytes,
                most_bytes = size.bytes(),
                timeout_s = TRANSACTION_TIMEOUT.as_secs(),
                "a flush did not get through to Kafka within its transaction's time; the next ones \
                 hold fewer bytes, and more again once they get through quickly"
            ),
            FlushOutcome::Committed if size.grow(held_bytes, took) => tracing::info!(
                most_bytes = size.bytes(),
                "flushes hold as many bytes as configured again"
            ),
            _ => {}
        }
    }

    /// Starts to read each partition whose resume point is found, and stops those that have none.
    fn start_located(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let (mut starts, mut stops) = (Vec::new(), Vec::new());
        for locator::Answer { partition, ticket, point } in self.consumer.located()? {
            let committed = point.as_ref().ok().map(|point| point.next);
            let (event, error) = match point {
                Ok(point) => (Event::Located(ticket, point), None),
                Err(error) => (Event::Unlocatable(ticket), Some(error)),
            };
            let action = self.partitions.step(partition, event, now);
            // An answer that is out of date changes nothing.
            match (action, error) {
                (Action::Nothing, _) => {}
                (action, None) => {
                    committed.into_iter().for_each(|next| self.backlog.located(partition, next));
                    starts.push((partition, action));
                }
                (action, Some(error)) => {
                    self.standstills.stopped(partition, &error);
                    stops.push((partition, action));
                }
            }
        }
        self.consumer.carry_out(&stops)?;
        if starts.is_empty() {
            return Ok(());
        }
        tracing::info!(from = ?starts, "reading on");
        self.ready.set(true, "");
        self.consumer.carry_out(&starts)
    }

    fn carry_out_decisions(&mut self) -> Result<(), Error> {
        while let Some(decision) = self.consumer.next_decision() {
            match decision {
                Rebalance::Assign(partitions) => {
                    self.renew_member()?;
                    self.forget_standstills(&partitions);
                    self.step_all(&partitions, || Event::Given)?;
                    self.consumer.take_on()?;
                    if partitions.is_empty() {
                        self.ready.set(true, "");
                    }
                }
                Rebalance::Revoke(partitions) => {
                    self.let_go(&partitions)?;
                    if self.partitions.held().is_empty() {
                        self.ready.set(false, "the group took all of them, and has given none yet");
                    }
                }
            }
            tracing::info!(partitions = ?self.partitions.held(), "assignment changed");
        }
        Ok(())
    }

    /// Reads everything again where this consumer was left out of the group and came back: others
    /// may have counted meanwhile what it has read.
    fn renew_member(&mut self) -> Result<(), Error> {
        if !self.consumer.joined_anew() {
            self.consumer.renew_generation();
            return Ok(());
        }
        self.wait_for_flush()?;
        let held = self.partitions.held();
        if !held.is_empty() {
            tracing::info!(
                partitions = ?held,
                "joined the group anew: reading again what was held before"
            );
            self.forget_standstills(&held);
            self.step_all(&held, || Event::Given)?;
        }
        self.consumer.renew_member();
        Ok(())
    }

    /// Finishes the partitions' flushes before others may have them; where they are lost already,
    /// drops their sums.
    fn let_go(&mut self, partitions: &[i32]) -> Result<(), Error> {
        self.wait_for_flush()?;
        if !self.consumer.is_lost() {
            self.flush(|partition| partitions.contains(&partition))?;
            self.wait_for_flush()?;
        }
        self.forget_standstills(partitions);
        self.step_all(partitions, || Event::Taken)?;
        self.consumer.let_go(partitions)
    }

    /// Flushes everything, and leaves the group.
    fn leave(&mut self) -> Result<(), Error> {
        self.ready.set(false, "stopping");
        self.carry_out_decisions()?;
        self.wait_for_flush()?;
        self.flush(|_| true)?;
        self.wait_for_flush()?;
        self.consumer.leave();
        tracing::info!("worker drained");
        Ok(())
    }
}
