//! Commits flushes, one after the other, on a thread of its own.
//!
//! Its producers take turns: the coordinator refuses an id until the markers of its last transaction are written, so the next
//! flush goes out on the next id. Flushes still commit in order, since one ends before the next begins.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use tally_service::config;
use tally_service::kafka::transactional_producer;

use crate::Error;
use crate::core::Rejected;
use crate::transaction::{Failure, Transaction, TransactionalProducer, repeat};

/// Producers in rotation.
const PRODUCERS: usize = 4;
/// How long a producer may take to come up, its predecessor's transaction ended included.
const INIT_DEADLINE: Duration = Duration::from_secs(120);
const INIT_CALL: Duration = Duration::from_secs(10);

/// One transaction: everything that a flush came to.
pub(crate) struct Job {
    /// Encoded batches, by the partition that they are of and go to.
    pub(crate) batches: Vec<(i32, Vec<u8>)>,
    pub(crate) rejected: Vec<Rejected>,
    /// The next offsets to read.
    pub(crate) offsets: TopicPartitionList,
    pub(crate) group: ConsumerGroupMetadata,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Committed,
    /// It did not commit, or nobody knows, and by now it is decided: the committed offsets tell.
    NotCommitted,
}

pub(crate) struct Committer {
    jobs: Option<SyncSender<Job>>,
    outcomes: Receiver<Result<Outcome, Error>>,
    thread: Option<JoinHandle<()>>,
    in_flight: bool,
}

impl Committer {
    /// Starts the thread, and ends what an earlier process of this name left open.
    pub(crate) fn start(kafka: &config::Kafka, name: &str) -> Result<Committer, Error> {
        let mut rotation = Rotation::new(kafka, name)?;
        let (jobs, inbox) = sync_channel::<Job>(1);
        let (results, outcomes) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(String::from("committer"))
            .spawn(move || {
                for job in inbox {
                    let outcome = rotation.run(&job);
                    if results.send(outcome).is_err() {
                        return;
                    }
                }
            })
            .expect("the system starts a thread");
        Ok(Committer { jobs: Some(jobs), outcomes, thread: Some(thread), in_flight: false })
    }

    pub(crate) fn is_idle(&self) -> bool {
        !self.in_flight
    }

    /// Hands a flush over.
    ///
    /// # Panics
    /// If one is in flight already.
    pub(crate) fn submit(&mut self, job: Job) {
        assert!(!self.in_flight, "one flush commits at a time");
        self.jobs
            .as_ref()
            .expect("there until dropped")
            .send(job)
            .expect("the committer lives as long as its owner");
        self.in_flight = true;
    }

    /// The outcome of the flush in flight, if it is there.
    pub(crate) fn poll(&mut self) -> Option<Result<Outcome, Error>> {
        let outcome = self.outcomes.try_recv().ok()?;
        self.in_flight = false;
        Some(outcome)
    }

    /// Waits for the flush in flight, if there is one. Bounded by the transaction's own timeouts.
    pub(crate) fn wait(&mut self) -> Option<Result<Outcome, Error>> {
        if !self.in_flight {
            return None;
        }
        self.in_flight = false;
        Some(self.outcomes.recv().expect("the committer lives as long as its owner"))
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the committer panicked");
        }
    }
}

/// The producers that take turns.
struct Rotation {
    kafka: config::Kafka,
    name: String,
    producers: Vec<TransactionalProducer>,
    turn: usize,
}

impl Rotation {
    fn new(kafka: &config::Kafka, name: &str) -> Result<Rotation, Error> {
        let mut rotation =
            Rotation { kafka: kafka.clone(), name: name.to_owned(), producers: Vec::new(), turn: 0 };
        for number in 0..PRODUCERS {
            let producer = rotation.producer(number)?;
            rotation.producers.push(producer);
        }
        Ok(rotation)
    }

    /// A new producer in this place of the rotation. By the time it is there, the coordinator has ended the transaction
    /// that the place's last producer left, one way or the other.
    fn producer(&self, number: usize) -> Result<TransactionalProducer, Error> {
        let id = format!("{}-{number}", self.name);
        let deadline = Instant::now() + INIT_DEADLINE;
        loop {
            let producer: TransactionalProducer = transactional_producer(&self.kafka, &id, &id)
                .create()
                .map_err(Error::kafka("make a transactional producer"))?;
            match repeat(|| producer.init_transactions(INIT_CALL)) {
                Ok(()) => return Ok(producer),
                Err(error) if Instant::now() >= deadline => {
                    return Err(Error::Coordinator(error.to_string()));
                }
                Err(error) => tracing::warn!(%error, id, "wait for the transaction coordinator"),
            }
        }
    }

    fn run(&mut self, job: &Job) -> Result<Outcome, Error> {
        let turn = self.turn;
        self.turn = (turn + 1) % self.producers.len();
        match commit(&self.producers[turn], &self.kafka, job) {
            Ok(()) => Ok(Outcome::Committed),
            Err(Failure::Aborted(error)) => {
                tracing::warn!(%error, "a flush was aborted: reading again from the committed offsets");
                Ok(Outcome::NotCommitted)
            }
            Err(Failure::Unknown(error)) => {
                tracing::warn!(%error, "a flush may have committed: replacing its producer");
                self.producers[turn] = self.producer(turn)?;
                Ok(Outcome::NotCommitted)
            }
            Err(Failure::Fenced(_)) => Err(Error::Fenced(format!("{}-{turn}", self.name))),
        }
    }
}

fn commit(producer: &TransactionalProducer, kafka: &config::Kafka, job: &Job) -> Result<(), Failure> {
    let transaction = Transaction::begin(producer)?;
    match fill(&transaction, kafka, job) {
        Ok(()) => transaction.commit(),
        Err(error) => Err(transaction.fail(error)),
    }
}

fn fill(transaction: &Transaction<'_>, kafka: &config::Kafka, job: &Job) -> Result<(), KafkaError> {
    for (partition, batch) in &job.batches {
        transaction.send(BaseRecord::to(&kafka.deltas).partition(*partition).payload(&batch[..]))?;
    }
    for rejected in &job.rejected {
        let headers = headers(&kafka.increments, rejected);
        let mut record = BaseRecord::to(&kafka.rejected).headers(headers);
        if let Some(key) = &rejected.key {
            record = record.key(&key[..]);
        }
        if let Some(payload) = &rejected.payload {
            record = record.payload(&payload[..]);
        }
        transaction.send(record)?;
    }
    transaction.offsets(&job.offsets, &job.group)
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
