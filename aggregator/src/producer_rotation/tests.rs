//! Each call of a transaction against each answer of the broker, from librdkafka's mock cluster.
//!
//! The mock answers as it is told, and keeps no transactions: what is tested is what librdkafka
//! makes of an answer, and what becomes of the producer.

use std::sync::{Arc, Mutex};

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey as Api;
use rdkafka::types::RDKafkaRespErr::{self, *};

use super::*;
use crate::committer::Committer;

type Mock = MockCluster<'static, DefaultProducerContext>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Committed,
    Aborted,
    Unknown,
    Fenced,
}

use Class::{Aborted, Committed, Fenced, Unknown};

fn class(outcome: &Result<(), Failure>) -> Class {
    match outcome {
        Ok(()) => Committed,
        Err(Failure::Aborted(_)) => Aborted,
        Err(Failure::Unknown(_)) => Unknown,
        Err(Failure::Fenced(_)) => Fenced,
    }
}

/// A mock cluster and producers in rotation on it.
struct TestRotation {
    mock: Mock,
    rotation: ProducerRotation,
}

impl TestRotation {
    fn new() -> TestRotation {
        let mock = MockCluster::new(1).unwrap();
        let kafka =
            config::Kafka { bootstrap: mock.bootstrap_servers(), ..config::Kafka::default() };
        for topic in [&kafka.increments, &kafka.deltas, &kafka.rejected] {
            mock.create_topic(topic, 2, 1).unwrap();
        }
        // It never joins: the mock asks for no member.
        let consumer: BaseConsumer =
            tally_kafka::consumer(&kafka.cluster(), "test", "group").create().unwrap();
        let group = Box::new(move |_: Option<&Member>| consumer.group_metadata());
        let rotation = ProducerRotation::new(&kafka, "test", group, &CancellationToken::new())
            .unwrap()
            .unwrap();
        TestRotation { mock, rotation }
    }

    fn job(&self) -> FlushJob {
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(&self.rotation.kafka.increments, 1, Offset::Offset(8))
            .unwrap();
        FlushJob { batches: vec![(1, vec![0; 100])], rejected: Vec::new(), offsets, member: None }
    }

    fn connection(&self, place: usize) -> Option<Arc<ConnectionWatch>> {
        self.rotation.producers[place]
            .as_ref()
            .map(|producer| Arc::clone(producer.client().context()))
    }

    /// Commits on the first place while the broker answers `api` with `errors`, one after the
    /// other.
    fn commit(&mut self, api: Api, errors: &[RDKafkaRespErr]) -> Result<(), Failure> {
        self.mock.request_errors(api, errors);
        let outcome =
            self.rotation.commit(self.rotation.producers[0].as_ref().unwrap(), &self.job());
        self.mock.clear_request_errors(api);
        outcome
    }

    /// Every place commits, perhaps not at once: a topic that was refused is asked for again only
    /// after a while.
    fn goes_on(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        for _ in 0..PRODUCERS {
            let place = self.rotation.turn;
            while self.rotation.run(&self.job()).unwrap() != FlushOutcome::Committed {
                assert!(Instant::now() < deadline, "place {place} does not commit any more");
                self.rotation.turn = place;
            }
        }
    }
}

/// They mostly wait, so they do it together.
fn each<T: Copy + Send + Sync>(of: &[T], check: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for one in of {
            scope.spawn(|| check(*one));
        }
    });
}

/// After these librdkafka may close a connection: to a coordinator that has moved, a new one is
/// made.
const LOSES: [RDKafkaRespErr; 3] = [
    RD_KAFKA_RESP_ERR__TRANSPORT,
    RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
    RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
];

fn check(api: Api, table: &[(RDKafkaRespErr, Class)]) {
    each(table, |(error, expected)| {
        let mut bench = TestRotation::new();
        let outcome = bench.commit(api, &[error]);
        let found = class(&outcome);
        assert_eq!(found, expected, "{api:?}, {error:?}: {outcome:?}");
        let before = bench.connection(0).unwrap();
        let lost = before.was_lost();
        bench.rotation.settle(0, outcome).unwrap();
        let kept = bench.connection(0).is_some_and(|now| Arc::ptr_eq(&now, &before));
        assert_eq!(kept, found == Committed && !lost, "{api:?}, {error:?}: lost {lost}");
        assert!(lost || error != RD_KAFKA_RESP_ERR__TRANSPORT, "{api:?}, {error:?}: not noticed");
        assert!(!lost || LOSES.contains(&error), "{api:?}, {error:?}: nothing was lost");
        bench.goes_on();
    });
}

#[test]
fn answers_to_add_partitions() {
    check(
        Api::AddPartitionsToTxn,
        &[
            (RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, Committed),
            (RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, Committed),
            (RD_KAFKA_RESP_ERR_NOT_COORDINATOR, Committed),
            (RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS, Committed),
            (RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, Committed),
            (RD_KAFKA_RESP_ERR__TRANSPORT, Committed),
            (RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, Aborted),
            (RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Aborted),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING, Aborted),
            (RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID, Aborted),
            (RD_KAFKA_RESP_ERR_UNKNOWN, Aborted),
            (RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, Unknown),
            (RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, Unknown),
            (RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, Unknown),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, Fenced),
            (RD_KAFKA_RESP_ERR_PRODUCER_FENCED, Fenced),
        ],
    );
}

#[test]
fn answers_to_produce() {
    check(
        Api::Produce,
        &[
            (RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, Committed),
            (RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND, Committed),
            (RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, Committed),
            (RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, Committed),
            (RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, Committed),
            (RD_KAFKA_RESP_ERR__TRANSPORT, Committed),
            (RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Aborted),
            (RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Aborted),
            (RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, Aborted),
            (RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID, Aborted),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING, Aborted),
            (RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, Unknown),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, Fenced),
        ],
    );
}

#[test]
fn answers_to_add_offsets() {
    check(
        Api::AddOffsetsToTxn,
        &[
            (RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, Committed),
            (RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, Committed),
            (RD_KAFKA_RESP_ERR_NOT_COORDINATOR, Committed),
            (RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS, Committed),
            (RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, Committed),
            (RD_KAFKA_RESP_ERR__TRANSPORT, Committed),
            (RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, Aborted),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING, Aborted),
            (RD_KAFKA_RESP_ERR_UNKNOWN, Aborted),
            (RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, Unknown),
            (RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, Unknown),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, Fenced),
            // Aborted only where the coordinator takes the abort, which it does not of one that was
            // fenced.
            (RD_KAFKA_RESP_ERR_PRODUCER_FENCED, Aborted),
        ],
    );
}

#[test]
fn answers_to_offsets() {
    check(
        Api::TxnOffsetCommit,
        &[
            (RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, Committed),
            (RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, Committed),
            (RD_KAFKA_RESP_ERR_NOT_COORDINATOR, Committed),
            (RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS, Committed),
            (RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, Committed),
            (RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, Committed),
            (RD_KAFKA_RESP_ERR__TRANSPORT, Committed),
            (RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, Aborted),
            (RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID, Aborted),
            (RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, Aborted),
            (RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS, Aborted),
            (RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, Aborted),
            (RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Aborted),
            (RD_KAFKA_RESP_ERR_UNKNOWN, Aborted),
            (RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, Unknown),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING, Unknown),
            (RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, Unknown),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, Fenced),
        ],
    );
}

#[test]
fn answers_to_end() {
    check(
        Api::EndTxn,
        &[
            (RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, Committed),
            (RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, Committed),
            (RD_KAFKA_RESP_ERR_NOT_COORDINATOR, Committed),
            (RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS, Committed),
            (RD_KAFKA_RESP_ERR__TRANSPORT, Committed),
            (RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, Aborted),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING, Aborted),
            (RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID, Aborted),
            (RD_KAFKA_RESP_ERR_UNKNOWN, Aborted),
            (RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, Unknown),
            (RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, Unknown),
            (RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, Unknown),
            (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, Fenced),
            (RD_KAFKA_RESP_ERR_PRODUCER_FENCED, Fenced),
        ],
    );
}

#[test]
fn a_commit_that_was_refused_and_cannot_be_aborted_is_unknown() {
    let mut bench = TestRotation::new();
    // The coordinator committed after all: it says so to the abort.
    let errors = [RD_KAFKA_RESP_ERR_UNKNOWN, RD_KAFKA_RESP_ERR_INVALID_TXN_STATE];
    let outcome = bench.commit(Api::EndTxn, &errors);
    assert_eq!(class(&outcome), Unknown, "{outcome:?}");
}

#[test]
fn an_abort_that_is_fenced_is_fenced() {
    let mut bench = TestRotation::new();
    bench.mock.request_errors(Api::EndTxn, &[RD_KAFKA_RESP_ERR_PRODUCER_FENCED]);
    let outcome = bench.commit(Api::TxnOffsetCommit, &[RD_KAFKA_RESP_ERR_PRODUCER_FENCED]);
    assert_eq!(class(&outcome), Fenced, "{outcome:?}");
}

#[test]
fn a_fence_after_the_transactions_time_is_the_coordinators_timeout() {
    let mut bench = TestRotation::new();
    bench.rotation.patience.fill = Duration::ZERO;
    let outcome = bench.commit(Api::EndTxn, &[RD_KAFKA_RESP_ERR_PRODUCER_FENCED]);
    assert_eq!(class(&outcome), Unknown, "{outcome:?}");
}

#[test]
fn only_a_flush_that_took_all_of_its_time_is_late() {
    let mut bench = TestRotation::new();
    let refused = |bench: &mut TestRotation| {
        bench.mock.request_errors(Api::TxnOffsetCommit, &[RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION]);
        bench.rotation.run(&bench.job()).unwrap()
    };
    let outcome = refused(&mut bench);
    assert!(matches!(outcome, FlushOutcome::NotCommitted(_)), "{outcome:?}");
    bench.rotation.patience.fill = Duration::ZERO;
    let outcome = refused(&mut bench);
    assert!(matches!(outcome, FlushOutcome::Late(_)), "{outcome:?}");
}

#[test]
fn a_commit_that_is_not_answered_in_time_is_unknown() {
    let mut bench = TestRotation::new();
    bench.rotation.patience.commit = Duration::from_secs(1);
    bench.mock.broker_round_trip_time(-1, Duration::from_secs(2)).unwrap();
    let outcome = bench.commit(Api::EndTxn, &[]);
    assert_eq!(class(&outcome), Unknown, "{outcome:?}");
    bench.mock.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    bench.rotation.patience = Patience::default();
    bench.rotation.settle(0, outcome).unwrap();
    bench.goes_on();
}

#[test]
fn a_flush_of_what_others_may_have_sends_no_offsets() {
    let mut bench = TestRotation::new();
    bench.rotation.group = Box::new(|_| None);
    // It would fail otherwise.
    let outcome = bench.commit(Api::AddOffsetsToTxn, &[RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH]);
    assert!(matches!(outcome, Err(Failure::Aborted(Cause::NotHeld))), "{outcome:?}");
}

#[test]
fn a_producer_comes_up_when_the_coordinator_does() {
    let errors = [
        RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR__TRANSPORT,
        // Somebody else's producer of the same id, a moment earlier: one more try is one more
        // epoch.
        RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        RD_KAFKA_RESP_ERR_PRODUCER_FENCED,
    ];
    each(&errors, |error| {
        let mut bench = TestRotation::new();
        bench.rotation.producers[0] = None;
        bench.mock.request_errors(Api::InitProducerId, &[error]);
        assert_eq!(bench.rotation.run(&bench.job()).unwrap(), FlushOutcome::Committed, "{error:?}");
        assert!(!bench.connection(0).unwrap().was_lost(), "{error:?}");
    });
}

#[test]
fn a_producer_that_is_refused_stops_the_worker() {
    let errors = [
        RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
        RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT,
    ];
    each(&errors, |error| {
        let mut bench = TestRotation::new();
        bench.rotation.producers[0] = None;
        bench.mock.request_errors(Api::InitProducerId, &[error]);
        let outcome = bench.rotation.run(&bench.job());
        assert!(matches!(outcome, Err(Error::Kafka { .. })), "{error:?}: {outcome:?}");
    });
}

#[test]
fn a_name_that_two_processes_use_stops_one_of_them() {
    let mut bench = TestRotation::new();
    let mut outcomes = Vec::new();
    for _ in 0..TAKEOVERS {
        bench.mock.request_errors(Api::EndTxn, &[RD_KAFKA_RESP_ERR_PRODUCER_FENCED]);
        outcomes.push(bench.rotation.run(&bench.job()));
    }
    let (last, before) = outcomes.split_last().unwrap();
    assert!(
        before.iter().all(|outcome| matches!(outcome, Ok(FlushOutcome::NotCommitted(_)))),
        "{before:?}"
    );
    assert!(matches!(last, Err(Error::Fenced(_))), "{last:?}");
}

#[test]
fn while_the_coordinator_is_away_a_stop_is_heard() {
    let mut bench = TestRotation::new();
    bench.rotation.producers[0] = None;
    bench.mock.broker_down(-1).unwrap();
    bench.rotation.stop.cancel();
    let outcome = bench.rotation.run(&bench.job()).unwrap();
    assert!(matches!(outcome, FlushOutcome::Undecided(_)), "{outcome:?}");
}

#[test]
fn each_lost_connection_is_noticed_also_where_it_repeats_the_last() {
    /// Librdkafka leaves lines out that repeat the one before within half a minute.
    const WITHIN: Duration = Duration::from_secs(25);
    let bench = TestRotation::new();
    let connection = bench.connection(0).unwrap();
    bench.mock.broker_down(-1).unwrap();
    let begun = Instant::now();
    for time in 1..=5 {
        while !connection.was_lost() {
            assert!(begun.elapsed() < WITHIN, "time {time} is not noticed");
            std::thread::sleep(Duration::from_millis(5));
        }
        connection.renew();
    }
}

#[test]
fn a_call_that_does_not_come_back_ends_the_committer() {
    const SECOND: Duration = Duration::from_secs(1);
    let mut bench = TestRotation::new();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    bench.rotation.group = Box::new(move |_| released.lock().unwrap().recv().ok().and(None));
    bench.rotation.patience = Patience { fill: SECOND, commit: SECOND, abort: SECOND };
    bench.rotation.margin = SECOND;
    let job = bench.job();
    let TestRotation { rotation, .. } = bench;
    let mut committer = Committer::start(rotation);
    committer.submit(job);
    let begun = Instant::now();
    let outcome = loop {
        match committer.wait(Duration::from_millis(50)) {
            Some(outcome) => break outcome,
            None => assert!(begun.elapsed() < 60 * SECOND, "nobody notices"),
        }
    };
    assert!(matches!(outcome, Err(Error::Stuck)), "{outcome:?}");
    assert!(begun.elapsed() >= 3 * SECOND, "it was given its time");
    drop(committer);
    drop(release);
}
