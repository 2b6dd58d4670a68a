//! Producers that take turns: the coordinator refuses an id until the markers of its last
//! transaction are written, so the next flush goes out on the next id.
//!
//! ```text
//!                    ┌─ Committed ────────────────────► the same producer, when its turn comes again
//!  job ─► a place's ─┼─ Committed, a connection lost ─┐
//!         producer   └─ Aborted, Unknown, Fenced ─────┴─► a new one, before the outcome is told
//! ```
//!
//! A new producer of an id ends what the last one left open, and shuts out what is still on its
//! way. Only then are the committed offsets worth reading.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer};
use tally_kafka::{Member, transactional_producer};
use tally_platform::config;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::core::Rejected;
use crate::overdue::Overdue;
use crate::rejection::record;
use crate::transaction::{
    Cause, Connection, Failure, Patience, Transaction, TransactionalProducer, repeat,
};

/// Producers in rotation.
const PRODUCERS: usize = 4;
/// One call for a producer's id and epoch; it goes on until there is an answer.
const INIT_CALL: Duration = Duration::from_secs(5);
/// Before the next call: not every failure has waited for something.
const INIT_PAUSE: Duration = Duration::from_millis(100);
const REMINDER: Duration = Duration::from_secs(10);
/// How long after its time a call is taken for one that never comes back.
const MARGIN: Duration = Duration::from_secs(30);
/// A take-over that comes alone is lived through. Two processes of one name take over from each
/// other at every flush: the one that was taken over from first gets here first, and stops.
const TAKEOVERS: usize = 3;
const TAKEOVERS_WITHIN: Duration = Duration::from_secs(60);

/// One transaction: everything that a flush came to.
pub(crate) struct Job {
    /// Encoded batches, by the partition that they are of and go to.
    pub(crate) batches: Vec<(i32, Vec<u8>)>,
    pub(crate) rejected: Vec<Rejected>,
    /// The next offsets to read.
    pub(crate) offsets: TopicPartitionList,
    /// Who holds the partitions.
    pub(crate) member: Option<Member>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    /// It did not commit, or nobody knows, and by now it is decided: the committed offsets tell.
    /// Holds why.
    NotCommitted(String),
    /// A stop came before it was decided: it may still commit, and nothing must be read on. Holds
    /// why.
    Undecided(String),
}

/// The group's metadata of this very moment, or `None` if the consumer is not this member.
pub(crate) type Group = Box<dyn Fn(Option<&Member>) -> Option<ConsumerGroupMetadata> + Send + Sync>;

pub(crate) struct Rotation {
    kafka: config::Kafka,
    name: String,
    group: Group,
    stop: CancellationToken,
    patience: Patience,
    margin: Duration,
    overdue: Arc<Overdue>,
    /// Empty where a stop came before a new producer.
    places: Vec<Option<TransactionalProducer>>,
    turn: usize,
    takeovers: Vec<Instant>,
}

impl Rotation {
    /// Ends what an earlier process of this name left open; `None` if `stop` comes first.
    pub(crate) fn new(
        kafka: &config::Kafka,
        name: &str,
        group: Group,
        stop: &CancellationToken,
    ) -> Result<Option<Rotation>, Error> {
        let mut rotation = Rotation {
            kafka: kafka.clone(),
            name: name.to_owned(),
            group,
            stop: stop.clone(),
            patience: Patience::default(),
            margin: MARGIN,
            overdue: Arc::default(),
            places: Vec::new(),
            turn: 0,
            takeovers: Vec::new(),
        };
        // Each waits half a second and more for its id, so they wait side by side.
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
            rotation.places.push(Some(producer));
        }
        Ok(Some(rotation))
    }

    /// A new producer of this place's id, however long the coordinator is away; `None` once that is
    /// to stop.
    fn producer(&self, number: usize) -> Result<Option<TransactionalProducer>, Error> {
        let id = format!("{}-{number}", self.name);
        let mut said: Option<Instant> = None;
        loop {
            let mut settings = transactional_producer(&self.kafka.cluster(), &id, &id);
            Connection::watch(&mut settings);
            let producer: TransactionalProducer = settings
                .create_with_context(Connection::default())
                .map_err(Error::kafka("make a transactional producer"))?;
            // One that was made in its stead would be fenced by what this one still has on its way.
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
                if said.is_none_or(|said| said.elapsed() >= REMINDER) {
                    tracing::warn!(%error, id, "wait for the transaction coordinator");
                    said = Some(Instant::now());
                }
                std::thread::sleep(INIT_PAUSE);
                if matches!(&error, KafkaError::Transaction(inner) if inner.is_fatal()) {
                    break;
                }
            }
        }
    }

    /// Past while a call does not come back.
    pub(crate) fn overdue(&self) -> Arc<Overdue> {
        Arc::clone(&self.overdue)
    }

    /// Commits a flush. By the time that this tells it did not commit, the coordinator has ended
    /// its transaction.
    pub(crate) fn run(&mut self, job: &Job) -> Result<Outcome, Error> {
        let outcome = self.take_turn(job);
        self.overdue.rest();
        outcome
    }

    fn take_turn(&mut self, job: &Job) -> Result<Outcome, Error> {
        let turn = self.turn;
        self.turn = (turn + 1) % self.places.len();
        if self.places[turn].is_none() {
            self.places[turn] = self.producer(turn)?;
        }
        let Some(producer) = &self.places[turn] else {
            return Ok(Outcome::Undecided(String::from("stopped while the coordinator was away")));
        };
        self.overdue.within(self.patience.longest() + self.margin);
        let outcome = self.commit(producer, job);
        self.settle(turn, outcome)
    }

    /// Keeps the place's producer, or puts a new one there before anything else is done.
    ///
    /// After a lost connection also where the flush committed: until there is a new epoch, a copy
    /// of its offsets that is still on its way is taken, and sets back what the next flush commits.
    /// That the committer waits where the coordinator is away, costs little: the next flush would
    /// mostly wait for the same broker.
    ///
    /// After an abort always: librdkafka gives the number of each message that waited to be sent
    /// once more to the next one of its partition. Where the first sending had been appended, the
    /// broker takes the next one for its repetition, and says that it is in. A new epoch begins to
    /// number anew.
    fn settle(&mut self, turn: usize, outcome: Result<(), Failure>) -> Result<Outcome, Error> {
        if let Err(failure) = &outcome {
            tracing::warn!(error = %failure, id = format!("{}-{turn}", self.name), "a flush did not commit");
        }
        if matches!(outcome, Err(Failure::Fenced(_))) {
            self.takeovers.retain(|at| at.elapsed() < TAKEOVERS_WITHIN);
            self.takeovers.push(Instant::now());
            if self.takeovers.len() >= TAKEOVERS {
                return Err(Error::Fenced(format!("{}-{turn}", self.name)));
            }
        }
        let was_lost = self.places[turn]
            .as_ref()
            .is_some_and(|producer| producer.client().context().was_lost());
        if was_lost || outcome.is_err() {
            // The old one first: it would be fenced, and say so.
            self.overdue.within(self.margin);
            self.places[turn] = None;
            self.places[turn] = self.producer(turn)?;
        }
        Ok(match outcome {
            Ok(()) => Outcome::Committed,
            Err(failure) if self.places[turn].is_some() => {
                Outcome::NotCommitted(failure.to_string())
            }
            Err(failure) => Outcome::Undecided(failure.to_string()),
        })
    }

    fn commit(&self, producer: &TransactionalProducer, job: &Job) -> Result<(), Failure> {
        let transaction = Transaction::begin(producer, self.patience)?;
        match self.fill(&transaction, job) {
            Ok(()) => transaction.commit(),
            Err(cause) => Err(transaction.fail(cause)),
        }
    }

    fn fill(&self, transaction: &Transaction<'_>, job: &Job) -> Result<(), Cause> {
        for (partition, batch) in &job.batches {
            let record =
                BaseRecord::to(&self.kafka.deltas).partition(*partition).payload(&batch[..]);
            transaction.send(record)?;
        }
        for rejected in &job.rejected {
            transaction.send(record(&self.kafka.rejected, &self.kafka.increments, rejected))?;
        }
        // The generation of just now, so that one which has begun since the flush was taken does
        // not refuse it. It says nothing of the partitions. They are this consumer's still if it is
        // the member that they were given to: no partition is let go while a flush is in flight,
        // and whoever was left out of the group comes back under another name, if not always with a
        // word of what was lost. Where it was left out after this, the broker refuses the
        // generation.
        let group = (self.group)(job.member.as_ref()).ok_or(Cause::NoMember)?;
        transaction.offsets(&job.offsets, &group)
    }
}

/// What no waiting mends.
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
