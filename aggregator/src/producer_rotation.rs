//! Kafka producers that take turns. The coordinator refuses a transactional id until the markers of
//! its last transaction are written, so the next flush goes out under the next id.
//!
//! ```text
//!                ┌─ Committed ────────────────────► the same producer, when its turn comes again
//!  job ─► the  ──┼─ Committed, a connection lost ─┐
//!  turn's        └─ Aborted, Unknown, Fenced ─────┴─► a new producer, before the outcome is told
//!  producer
//! ```
//!
//! A new producer of an id ends the transaction that the last one left open, and its new epoch
//! shuts out requests that are still on their way. Only then can the committed offsets be trusted.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer};
use tally_kafka::{Member, transactional_producer};
use tally_platform::config;
use tally_platform::quiet_log::QuietLog;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::overdue::Overdue;
use crate::partitions::Rejected;
use crate::rejected_record::record;
use crate::transaction::{
    Cause, ConnectionWatch, Failure, Patience, Transaction, TransactionalProducer, repeat,
};

/// How many producers take turns.
const PRODUCERS: usize = 4;
/// The time for one call that asks for a producer's id and epoch. It is repeated until there is an
/// answer.
const INIT_CALL: Duration = Duration::from_secs(5);
/// The pause before the next such call, since not every failure has taken time.
const INIT_PAUSE: Duration = Duration::from_millis(100);
/// The time between two log lines about a coordinator that does not answer.
const REMINDER: Duration = Duration::from_secs(10);
/// A call that is so long overdue is taken for one that never comes back.
const MARGIN: Duration = Duration::from_secs(30);
/// So many take-overs within [`TAKEOVERS_WITHIN`] stop the worker; a single one does not. Two
/// processes of one name take over from each other at every flush, and the one that was taken over
/// from first counts so many first.
const TAKEOVERS: usize = 3;
const TAKEOVERS_WITHIN: Duration = Duration::from_secs(60);
/// A call gives up so long before its time is over, at most.
const EARLY: Duration = Duration::from_secs(1);

/// What one transaction commits: all that a flush came to.
pub(crate) struct FlushJob {
    /// Encoded delta batches, each with its partition: the same number on `increments` and
    /// `deltas`.
    pub(crate) batches: Vec<(i32, Vec<u8>)>,
    pub(crate) rejected: Vec<Rejected>,
    /// The next offsets to read, with their bookmarks.
    pub(crate) offsets: TopicPartitionList,
    /// The member that the partitions were given to.
    pub(crate) member: Option<Member>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FlushOutcome {
    Committed,
    /// The flush did not commit, or its outcome is not known, for this reason. By now the
    /// coordinator has decided, so the committed offsets tell.
    NotCommitted(String),
    /// The same, of a flush that took all of a transaction's time: one that holds less may get
    /// through.
    Late(String),
    /// The flush may still commit, because the worker was stopped before the coordinator decided:
    /// nothing must be read on. Holds the reason.
    Undecided(String),
}

/// Tells the group's metadata of this very moment, or `None` if others may have what the consumer
/// held as this member.
pub(crate) type GroupMetadata =
    Box<dyn Fn(Option<&Member>) -> Option<ConsumerGroupMetadata> + Send + Sync>;

pub(crate) struct ProducerRotation {
    kafka: config::Kafka,
    name: String,
    group: GroupMetadata,
    stop: CancellationToken,
    patience: Patience,
    margin: Duration,
    overdue: Arc<Overdue>,
    /// By turn; `None` where the worker was stopped before there was a new producer.
    producers: Vec<Option<TransactionalProducer>>,
    /// The producer that commits the next flush.
    turn: usize,
    /// When other processes took over an id of this one.
    takeovers: Vec<Instant>,
}

impl ProducerRotation {
    /// Makes the producers, which ends the transactions that an earlier process of this name left
    /// open; `None` if `stop` comes first.
    pub(crate) fn new(
        kafka: &config::Kafka,
        name: &str,
        group: GroupMetadata,
        stop: &CancellationToken,
    ) -> Result<Option<ProducerRotation>, Error> {
        let mut rotation = ProducerRotation {
            kafka: kafka.clone(),
            name: name.to_owned(),
            group,
            stop: stop.clone(),
            patience: Patience::default(),
            margin: MARGIN,
            overdue: Arc::default(),
            producers: Vec::new(),
            turn: 0,
            takeovers: Vec::new(),
        };
        // A producer waits half a second and more for its id, so all wait side by side.
        let made: Vec<_> = std::thread::scope(|scope| {
            let rotation = &rotation;
            let producers: Vec<_> = (0..PRODUCERS)
                .map(|number| scope.spawn(move || rotation.producer(number)))
                .collect();
            producers
                .into_iter()
                .map(|made| made.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        });
        for producer in made {
            let Some(producer) = producer? else { return Ok(None) };
            rotation.producers.push(Some(producer));
        }
        Ok(Some(rotation))
    }

    /// Makes a new producer of this turn's id, however long the coordinator is away; `None` once
    /// the worker is to stop.
    fn producer(&self, number: usize) -> Result<Option<TransactionalProducer>, Error> {
        let id = format!("{}-{number}", self.name);
        let mut log = QuietLog::every(REMINDER);
        loop {
            let mut settings = transactional_producer(&self.kafka.cluster(), &id, &id);
            ConnectionWatch::watch(&mut settings);
            let producer: TransactionalProducer = settings
                .create_with_context(ConnectionWatch::default())
                .map_err(Error::kafka("make a transactional producer"))?;
            // The same producer is asked again: a request of it that is still on its way would
            // fence a new one.
            loop {
                self.overdue.within(INIT_CALL + self.margin);
                let error = match repeat(Instant::now() + INIT_CALL, |left| {
                    producer.init_transactions(left)
                }) {
                    Ok(()) => {
                        producer.client().context().renew();
                        return Ok(Some(producer));
                    }
                    Err(error) => error,
                };
                if is_refused(&error) {
                    return Err(Error::Kafka { what: "start transactions", source: error });
                }
                if self.stop.is_cancelled() {
                    return Ok(None);
                }
                if log.failed(Instant::now()).is_some() {
                    tracing::warn!(
                        %error, id,
                        "wait for the transaction coordinator; asking it again"
                    );
                }
                std::thread::sleep(INIT_PAUSE);
                if matches!(&error, KafkaError::Transaction(inner) if inner.is_fatal()) {
                    break;
                }
            }
        }
    }

    /// Tells whether a call has not come back for too long.
    pub(crate) fn overdue(&self) -> Arc<Overdue> {
        Arc::clone(&self.overdue)
    }

    /// Commits a flush. When it returns that the flush did not commit, the coordinator has ended
    /// the transaction.
    pub(crate) fn run(&mut self, job: &FlushJob) -> Result<FlushOutcome, Error> {
        let outcome = self.take_turn(job);
        self.overdue.rest();
        outcome
    }

    fn take_turn(&mut self, job: &FlushJob) -> Result<FlushOutcome, Error> {
        let turn = self.turn;
        self.turn = (turn + 1) % self.producers.len();
        if self.producers[turn].is_none() {
            self.producers[turn] = self.producer(turn)?;
        }
        let Some(producer) = &self.producers[turn] else {
            let reason = "the worker was stopped while the transaction coordinator was away";
            return Ok(FlushOutcome::Undecided(reason.to_owned()));
        };
        self.overdue.within(self.patience.longest() + self.margin);
        let begun = Instant::now();
        let outcome = self.commit(producer, job);
        let is_late = begun.elapsed() + EARLY >= self.patience.fill;
        match self.settle(turn, outcome)? {
            FlushOutcome::NotCommitted(reason) if is_late => Ok(FlushOutcome::Late(reason)),
            outcome => Ok(outcome),
        }
    }

    /// Keeps the turn's producer, or replaces it before anything else is done. A producer is
    /// replaced in two cases, and ADR 10 tells how both were found.
    ///
    /// It is replaced when it has lost a connection, even if the flush committed. librdkafka sends
    /// unanswered requests again, so a copy of the offsets may still be on its way. The broker
    /// would accept that copy as long as the epoch is the same, and it would set back the offsets
    /// that the next flush commits. A new epoch makes the broker refuse the copy. Making the new
    /// producer may have to wait for the coordinator, but the next flush would mostly wait for the
    /// same broker.
    ///
    /// It is replaced after every abort. A message that was waiting to be sent a second time is
    /// thrown away by librdkafka, and its sequence number is given to the next message of that
    /// partition. If the broker had appended the first copy, it takes the next message for a
    /// repetition of it, acknowledges it, and appends nothing. A new producer epoch begins a new
    /// sequence.
    fn settle(&mut self, turn: usize, outcome: Result<(), Failure>) -> Result<FlushOutcome, Error> {
        if let Err(failure) = &outcome {
            let id = format!("{}-{turn}", self.name);
            tracing::warn!(
                error = %failure, id,
                "a flush did not commit; its partitions are read again from the committed offsets"
            );
        }
        if matches!(outcome, Err(Failure::Fenced(_))) {
            self.takeovers.retain(|at| at.elapsed() < TAKEOVERS_WITHIN);
            self.takeovers.push(Instant::now());
            if self.takeovers.len() >= TAKEOVERS {
                return Err(Error::Fenced(format!("{}-{turn}", self.name)));
            }
        }
        let was_lost = self.producers[turn]
            .as_ref()
            .is_some_and(|producer| producer.client().context().was_lost());
        if was_lost || outcome.is_err() {
            // The old producer goes first: the new one would fence it, which it would log.
            self.overdue.within(self.margin);
            self.producers[turn] = None;
            self.producers[turn] = self.producer(turn)?;
        }
        Ok(match outcome {
            Ok(()) => FlushOutcome::Committed,
            Err(failure) if self.producers[turn].is_some() => {
                FlushOutcome::NotCommitted(failure.to_string())
            }
            Err(failure) => FlushOutcome::Undecided(failure.to_string()),
        })
    }

    fn commit(&self, producer: &TransactionalProducer, job: &FlushJob) -> Result<(), Failure> {
        let transaction = Transaction::begin(producer, self.patience)?;
        match self.fill(&transaction, job) {
            Ok(()) => transaction.commit(),
            Err(cause) => Err(transaction.fail(cause)),
        }
    }

    fn fill(&self, transaction: &Transaction<'_>, job: &FlushJob) -> Result<(), Cause> {
        for (partition, batch) in &job.batches {
            let record =
                BaseRecord::to(&self.kafka.deltas).partition(*partition).payload(&batch[..]);
            transaction.send(record)?;
        }
        for rejected in &job.rejected {
            transaction.send(record(&self.kafka.rejected, &self.kafka.increments, rejected))?;
        }
        // The metadata is asked for now, because the group may have begun a new generation since
        // the flush was taken, and the broker refuses an old one. The broker takes the present one
        // of any member, also for partitions that are another's. So `group_metadata` gives it only
        // while what the flush is of cannot have been given to others. If this consumer is left out
        // of the group after this line, the broker refuses the generation.
        let group = (self.group)(job.member.as_ref()).ok_or(Cause::NotHeld)?;
        transaction.offsets(&job.offsets, &group)
    }
}

/// Whether the error is one that no waiting mends.
fn is_refused(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::InvalidTransactionTimeout
                | RDKafkaErrorCode::UnsupportedFeature
        )
    )
}

#[cfg(test)]
mod tests;
