//! Producers that take turns: the coordinator refuses an id until the markers of its last transaction are written, so the next
//! flush goes out on the next id.
//!
//! ```text
//!                    ┌─ Committed ─────────────────────────┐
//!  job ─► a place's ─┼─ Aborted ───────────────────────────┼─► same producer again, unless it lost a connection meanwhile
//!         producer   └─ Unknown, Fenced ─► a new one, now ─┘
//! ```
//!
//! A new producer of an id ends what the last one left open, and shuts out what is still on its way. Only then are the
//! committed offsets worth reading.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use tally_service::config;
use tally_service::kafka::transactional_producer;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::core::Rejected;
use crate::transaction::{Cause, Connection, Failure, Patience, Transaction, TransactionalProducer, repeat};

/// Producers in rotation.
const PRODUCERS: usize = 4;
/// One call for a producer's id and epoch; it goes on until there is an answer.
const INIT_CALL: Duration = Duration::from_secs(5);
const REMINDER: Duration = Duration::from_secs(10);
/// A take-over that comes alone is lived through. Two processes of one name take over from each other at every flush: the
/// one that was taken over from first gets here first, and stops.
const TAKEOVERS: usize = 3;
const TAKEOVERS_WITHIN: Duration = Duration::from_secs(60);

/// One transaction: everything that a flush came to.
pub(crate) struct Job {
    /// Encoded batches, by the partition that they are of and go to.
    pub(crate) batches: Vec<(i32, Vec<u8>)>,
    pub(crate) rejected: Vec<Rejected>,
    /// The next offsets to read.
    pub(crate) offsets: TopicPartitionList,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    /// It did not commit, or nobody knows, and by now it is decided: the committed offsets tell. Holds why.
    NotCommitted(String),
}

/// The group's metadata of this very moment, or `None` if the consumer is no member.
pub(crate) type Group = Box<dyn Fn() -> Option<ConsumerGroupMetadata> + Send>;

pub(crate) struct Rotation {
    kafka: config::Kafka,
    name: String,
    group: Group,
    stop: CancellationToken,
    patience: Patience,
    /// Empty where a producer is to be replaced when its turn comes.
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
            places: Vec::new(),
            turn: 0,
            takeovers: Vec::new(),
        };
        for number in 0..PRODUCERS {
            let Some(producer) = rotation.producer(number)? else { return Ok(None) };
            rotation.places.push(Some(producer));
        }
        Ok(Some(rotation))
    }

    /// A new producer of this place's id, however long the coordinator is away; `None` once that is to stop.
    fn producer(&self, number: usize) -> Result<Option<TransactionalProducer>, Error> {
        let id = format!("{}-{number}", self.name);
        let mut said: Option<Instant> = None;
        loop {
            let producer: TransactionalProducer = transactional_producer(&self.kafka, &id, &id)
                // What the connection looks out for.
                .set_log_level(RDKafkaLogLevel::Info)
                .create_with_context(Connection::default())
                .map_err(Error::kafka("make a transactional producer"))?;
            // One that was made in its stead would be fenced by what this one still has on its way.
            loop {
                let error = match repeat(Instant::now() + INIT_CALL, |left| producer.init_transactions(left))
                {
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
                if matches!(&error, KafkaError::Transaction(inner) if inner.is_fatal()) {
                    break;
                }
            }
        }
    }

    /// Commits a flush. By the time it did not commit, the coordinator has ended its transaction.
    pub(crate) fn run(&mut self, job: &Job) -> Result<Outcome, Error> {
        let turn = self.turn;
        self.turn = (turn + 1) % self.places.len();
        if self.places[turn].is_none() {
            self.places[turn] = self.producer(turn)?;
        }
        let Some(producer) = &self.places[turn] else {
            return Ok(Outcome::NotCommitted(String::from("stopped while the coordinator was away")));
        };
        let outcome = self.commit(producer, job);
        self.settle(turn, outcome)
    }

    /// Keeps the place's producer, or does not.
    fn settle(&mut self, turn: usize, outcome: Result<(), Failure>) -> Result<Outcome, Error> {
        if self.places[turn].as_ref().is_some_and(|producer| producer.client().context().was_lost()) {
            self.places[turn] = None;
        }
        let Err(failure) = outcome else { return Ok(Outcome::Committed) };
        tracing::warn!(error = %failure, id = format!("{}-{turn}", self.name), "a flush did not commit");
        match &failure {
            Failure::Aborted(_) => {}
            Failure::Unknown(_) => self.replace(turn)?,
            Failure::Fenced(_) => {
                self.takeovers.retain(|at| at.elapsed() < TAKEOVERS_WITHIN);
                self.takeovers.push(Instant::now());
                if self.takeovers.len() >= TAKEOVERS {
                    return Err(Error::Fenced(format!("{}-{turn}", self.name)));
                }
                self.replace(turn)?;
            }
        }
        Ok(Outcome::NotCommitted(failure.to_string()))
    }

    fn replace(&mut self, turn: usize) -> Result<(), Error> {
        // The old one first: it would be fenced, and say so.
        self.places[turn] = None;
        self.places[turn] = self.producer(turn)?;
        Ok(())
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
            let record = BaseRecord::to(&self.kafka.deltas).partition(*partition).payload(&batch[..]);
            transaction.send(record)?;
        }
        for rejected in &job.rejected {
            let headers = headers(&self.kafka.increments, rejected);
            let mut record = BaseRecord::to(&self.kafka.rejected).headers(headers);
            if let Some(key) = &rejected.key {
                record = record.key(&key[..]);
            }
            if let Some(payload) = &rejected.payload {
                record = record.payload(&payload[..]);
            }
            transaction.send(record)?;
        }
        // The generation of just now, so that one which has begun since the flush was taken does not refuse it. It says nothing
        // of the partitions, so they must still be this member's: its owner lets none of them go, and carries no loss out,
        // while a flush is in flight, and a member that was thrown out does not join again before that.
        let group = (self.group)().ok_or(Cause::NoMember)?;
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

/// Where a rejected message came from, and why it was rejected.
fn headers(topic: &str, rejected: &Rejected) -> OwnedHeaders {
    let (partition, offset) = (rejected.partition.to_string(), rejected.offset.to_string());
    let header = |key, value| Header { key, value: Some(value) };
    OwnedHeaders::new()
        .insert(header("tally.reason", rejected.reason.as_str()))
        .insert(header("tally.detail", &rejected.detail))
        .insert(header("tally.topic", topic))
        .insert(header("tally.partition", &partition))
        .insert(header("tally.offset", &offset))
}

#[cfg(test)]
mod tests;
