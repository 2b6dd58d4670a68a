//! Two members of a group as state machines against a model of their topic: flushes that are in
//! flight while messages come, that commit, abort, or commit without their member learning of it;
//! partitions that are handed over, and lost; schemas that are missing for a while. Each member has
//! a fetcher and a locator that do what the partitions' actions say, and the locator may answer
//! late.

use proptest::prelude::*;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::*;

const PARTITIONS: usize = 3;
const MEMBERS: usize = 2;
/// Small enough that batches are cut.
const LIMITS: Limits = Limits {
    interval: Duration::from_secs(1),
    batch_bytes: 60,
    total_bytes: 200,
    gone_after: Duration::ZERO,
};

/// What the aggregator must come to.
#[derive(Clone, Debug, Default)]
struct Model {
    logs: [Log; PARTITIONS],
    /// By partition.
    owner: [usize; PARTITIONS],
    /// By member.
    in_flight: [bool; MEMBERS],
}

/// A partition's messages: offset and delta, or no delta for one that is rejected.
#[derive(Clone, Debug, Default)]
struct Log {
    messages: Vec<(i64, Option<i64>)>,
    end: i64,
}

impl Log {
    fn sum_below(&self, offset: i64) -> Counted {
        let below = self.messages.iter().filter(|(at, _)| *at < offset);
        below.fold(Counted::default(), |counted, (_, delta)| Counted {
            sum: counted.sum + delta.unwrap_or(0),
            messages: counted.messages + 1,
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    sum: i64,
    messages: u64,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Committed,
    Aborted,
    /// The member learns nothing, and reads again from what is committed.
    CommittedUnknown,
    /// The member stops before it learns anything, and its partitions go to the other one, which
    /// waits until the flush is decided.
    Undecided {
        commits: bool,
    },
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        partition: usize,
        gap: i64,
        delta: Option<i64>,
    },
    /// At most so many messages of each partition.
    Read {
        member: usize,
        messages: usize,
    },
    Flush {
        member: usize,
    },
    End {
        member: usize,
        outcome: Outcome,
    },
    /// To the other member, once its owner has flushed it.
    HandOver {
        partition: usize,
    },
    /// The group goes on without the member, which notices later: what it has in flight is refused.
    Lose {
        member: usize,
    },
    /// The registry does not tell the schema of the partition's next message.
    MissSchema {
        partition: usize,
    },
    LearnSchemas {
        member: usize,
    },
    /// Kafka's log of the partition cannot be read on until somebody has mended it.
    Damage {
        partition: usize,
    },
    /// The partition has no resume point.
    FindNone {
        partition: usize,
    },
    /// The member's locator finds what it was asked for last.
    Find {
        member: usize,
    },
    /// The member hears what its locator has found, by now perhaps out of date.
    Hear {
        member: usize,
    },
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::default()).boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let outcome = || {
            prop_oneof![
                3 => Just(Outcome::Committed),
                1 => Just(Outcome::Aborted),
                1 => Just(Outcome::CommittedUnknown),
                1 => any::<bool>().prop_map(|commits| Outcome::Undecided { commits }),
            ]
        };
        prop_oneof![
            6 => (0..PARTITIONS, 0i64..3, prop::option::weighted(0.9, -5i64..5))
                .prop_map(|(partition, gap, delta)| Step::Append { partition, gap, delta }),
            6 => (0..MEMBERS, 1usize..6)
                .prop_map(|(member, messages)| Step::Read { member, messages }),
            3 => (0..MEMBERS).prop_map(|member| Step::Flush { member }),
            3 => (0..MEMBERS, outcome())
                .prop_map(|(member, outcome)| Step::End { member, outcome }),
            1 => (0..PARTITIONS).prop_map(|partition| Step::HandOver { partition }),
            1 => (0..MEMBERS).prop_map(|member| Step::Lose { member }),
            1 => (0..PARTITIONS).prop_map(|partition| Step::MissSchema { partition }),
            1 => (0..MEMBERS).prop_map(|member| Step::LearnSchemas { member }),
            1 => (0..PARTITIONS).prop_map(|partition| Step::Damage { partition }),
            1 => (0..PARTITIONS).prop_map(|partition| Step::FindNone { partition }),
            4 => (0..MEMBERS).prop_map(|member| Step::Find { member }),
            4 => (0..MEMBERS).prop_map(|member| Step::Hear { member }),
        ]
        .boxed()
    }

    /// The worker's own order: one flush at a time, and none in flight where partitions are let go.
    fn preconditions(model: &Model, step: &Step) -> bool {
        match step {
            Step::Flush { member } => !model.in_flight[*member],
            Step::End { member, .. } => model.in_flight[*member],
            Step::HandOver { partition } => !model.in_flight[model.owner[*partition]],
            _ => true,
        }
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        match *step {
            Step::Append { partition, gap, delta } => {
                let log = &mut model.logs[partition];
                log.messages.push((log.end + gap, delta));
                log.end += gap + 1;
            }
            Step::Flush { member } => model.in_flight[member] = true,
            Step::End { member, outcome } => {
                model.in_flight[member] = false;
                if matches!(outcome, Outcome::Undecided { .. }) {
                    model.leave(member);
                }
            }
            Step::HandOver { partition } => model.owner[partition] = 1 - model.owner[partition],
            Step::Lose { member } => {
                model.in_flight[member] = false;
                model.leave(member);
            }
            _ => {}
        }
        model
    }
}

impl Model {
    /// Gives all partitions of the member to the other one.
    fn leave(&mut self, member: usize) {
        self.owner
            .iter_mut()
            .filter(|owner| **owner == member)
            .for_each(|owner| *owner = 1 - member);
    }
}

/// What was committed of a partition.
#[derive(Clone, Copy, Debug, Default)]
struct Committed {
    next: i64,
    counted: Counted,
}

/// How many offsets before the committed one are read again for their ids.
const RESTORED: i64 = 3;

/// One member's partitions, and who does what their actions say.
struct Worker {
    partitions: Partitions,
    in_flight: Option<Vec<(i32, Flush)>>,
    /// The next offset of each partition that the fetcher reads.
    fetcher: BTreeMap<i32, i64>,
    /// What the locator was asked for last.
    requests: BTreeMap<i32, Ticket>,
    /// What the locator has found and the worker has not heard.
    found: Vec<(Ticket, ResumePoint)>,
}

impl Worker {
    fn new() -> Worker {
        Worker {
            partitions: Partitions::new(Rules::default(), LIMITS),
            in_flight: None,
            fetcher: BTreeMap::new(),
            requests: BTreeMap::new(),
            found: Vec::new(),
        }
    }

    fn step(&mut self, partition: i32, event: Event) {
        match self.partitions.step(partition, event, Instant::now()) {
            Action::Nothing => {}
            Action::ReadFrom(offset) => {
                self.fetcher.insert(partition, offset);
            }
            Action::Locate(ticket) => {
                self.fetcher.remove(&partition);
                self.requests.insert(partition, ticket);
            }
            Action::Stop => {
                self.fetcher.remove(&partition);
                self.requests.remove(&partition);
            }
        }
    }

    fn step_all(&mut self, partitions: &[i32], event: fn() -> Event) {
        partitions.iter().for_each(|partition| self.step(*partition, event()));
    }

    fn find(&mut self, committed: &[Committed; PARTITIONS]) {
        for (partition, ticket) in std::mem::take(&mut self.requests) {
            let next = committed[partition as usize].next;
            let read_from = (next - RESTORED).max(0);
            let point = ResumePoint { read_from, ..ResumePoint::afresh(partition, next) };
            self.found.push((ticket, point));
        }
    }

    fn hear(&mut self) {
        for (ticket, point) in std::mem::take(&mut self.found) {
            self.step(point.partition, Event::Located(ticket, point));
        }
    }

    fn learn_schemas(&mut self) {
        for (partition, _) in self.partitions.waiting().collect::<Vec<_>>() {
            self.step(partition, Event::SchemaLearned);
        }
    }

    /// Folds at most so many messages of each partition that the fetcher reads.
    fn read(&mut self, logs: &[Log; PARTITIONS], messages: usize) {
        for (partition, next) in &mut self.fetcher {
            let log = &logs[*partition as usize];
            let unread = log.messages.iter().filter(|(offset, _)| *offset >= *next);
            for (offset, delta) in unread.take(messages).copied().collect::<Vec<_>>() {
                fold(&mut self.partitions, *partition, offset, delta);
                *next = offset + 1;
                let state = &self.partitions.states[partition];
                assert_eq!(state.next(), Some(*next), "fetcher and state are at one offset");
            }
        }
    }
}

fn fold(partitions: &mut Partitions, partition: i32, offset: i64, delta: Option<i64>) {
    let now = Instant::now();
    // Some counters are met again, others are new.
    let key = if offset % 3 == 0 { "often" } else { ["a", "b", "c"][(offset % 4 % 3) as usize] };
    let reason = Reject::NotFramed;
    match (partitions.is_to_restore(partition, offset), delta) {
        (true, _) => partitions.pass_over(partition, offset, reason, b"", now),
        (false, Some(delta)) => {
            let increment = Increment { namespace: "ns", key, delta, at_ms: 0, id: None };
            let envelope = Envelope { offset, timestamp_ms: None, schema: 7, batch_id: None };
            partitions.count(partition, &envelope, &[increment], now).unwrap();
        }
        (false, None) => {
            let rejected = Rejected {
                partition,
                offset,
                timestamp_ms: None,
                reason,
                detail: String::new(),
                key: None,
                payload: None,
                truncated: None,
            };
            partitions.reject(rejected, b"", now);
        }
    }
}

/// Both members, and what the broker has of them.
struct Members {
    workers: [Worker; MEMBERS],
    committed: [Committed; PARTITIONS],
}

impl Members {
    fn commit(&mut self, flushes: Vec<(i32, Flush)>) {
        for (partition, flush) in flushes {
            let committed = &mut self.committed[partition as usize];
            assert_eq!(flush.from, committed.next, "partition {partition}: the chain is unbroken");
            committed.next = flush.to;
            committed.counted.sum += flush.sums.iter().map(|delta| delta.sum).sum::<i64>();
            committed.counted.messages += flush.counted + flush.duplicate + flush.rejected;
        }
    }

    /// The member's flush ends. `model` is as it is after that.
    fn end(&mut self, member: usize, outcome: Outcome) {
        let flushes = self.workers[member].in_flight.take().expect("a flush is in flight");
        let worker = &mut self.workers[member];
        match outcome {
            Outcome::Committed => self.commit(flushes),
            Outcome::Aborted => {
                worker.step_all(&worker.partitions.located(), || Event::Rewound);
            }
            Outcome::CommittedUnknown => {
                worker.step_all(&worker.partitions.located(), || Event::Rewound);
                self.commit(flushes);
            }
            Outcome::Undecided { commits } => {
                worker.step_all(&worker.partitions.held(), || Event::Parked);
                if commits {
                    self.commit(flushes);
                }
                self.leave(member);
            }
        }
    }

    /// The group takes all partitions from the member, and gives them to the other one.
    fn leave(&mut self, member: usize) {
        let held = self.workers[member].partitions.held();
        self.workers[member].step_all(&held, || Event::Taken);
        self.workers[1 - member].step_all(&held, || Event::Given);
    }

    fn check(&self, model: &Model) {
        for (partition, log) in (0..).zip(&model.logs) {
            let Committed { next, counted } = self.committed[partition as usize];
            let expected = log.sum_below(next);
            assert_eq!(counted, expected, "partition {partition}, committed up to {next}");
            let owner = model.owner[partition as usize];
            for (member, worker) in self.workers.iter().enumerate() {
                let state = worker.partitions.states.get(&partition);
                assert_eq!(state.is_some(), member == owner, "one member holds it, its owner");
                let fold = state.and_then(State::fold);
                assert!(fold.is_none_or(|fold| fold.next() >= next), "nothing counts again");
                let is_read = state.is_some_and(|state| state.next().is_some());
                assert_eq!(worker.fetcher.contains_key(&partition), is_read, "as its state says");
            }
        }
    }
}

struct Aggregators;

impl StateMachineTest for Aggregators {
    type SystemUnderTest = Members;
    type Reference = Model;

    fn init_test(model: &Model) -> Members {
        let workers = [(); MEMBERS].map(|()| Worker::new());
        let mut members = Members { workers, committed: Default::default() };
        for (partition, owner) in (0..).zip(model.owner) {
            members.workers[owner].step(partition, Event::Given);
        }
        members
    }

    /// `model` is as it is after the step.
    fn apply(mut members: Members, model: &Model, step: Step) -> Members {
        match step {
            Step::Append { .. } => {}
            Step::Read { member, messages } => members.workers[member].read(&model.logs, messages),
            Step::Flush { member } => {
                let worker = &mut members.workers[member];
                worker.in_flight = Some(worker.partitions.take(|_| true).0);
            }
            Step::End { member, outcome } => members.end(member, outcome),
            Step::HandOver { partition } => {
                let (to, partition) = (model.owner[partition], partition as i32);
                let flushes = members.workers[1 - to].partitions.take(|p| p == partition).0;
                members.commit(flushes);
                members.workers[1 - to].step(partition, Event::Taken);
                members.workers[to].step(partition, Event::Given);
            }
            Step::Lose { member } => {
                members.workers[member].in_flight = None;
                members.leave(member);
            }
            Step::MissSchema { partition } => {
                let worker = &mut members.workers[model.owner[partition]];
                worker.step(partition as i32, Event::SchemaMissing { schema: 9 });
            }
            Step::LearnSchemas { member } => members.workers[member].learn_schemas(),
            Step::Damage { partition } => {
                let worker = &mut members.workers[model.owner[partition]];
                worker.step(partition as i32, Event::Unreadable);
            }
            Step::FindNone { partition } => {
                let (worker, partition) =
                    (&mut members.workers[model.owner[partition]], partition as i32);
                if let Some(ticket) = worker.requests.remove(&partition) {
                    worker.step(partition, Event::Unlocatable(ticket));
                }
            }
            Step::Find { member } => members.workers[member].find(&members.committed),
            Step::Hear { member } => members.workers[member].hear(),
        }
        members
    }

    fn check_invariants(members: &Members, model: &Model) {
        members.check(model);
    }

    /// Left alone, with logs that are mended, they come to the log's end.
    fn teardown(mut members: Members, model: Model) {
        for member in 0..MEMBERS {
            if let Some(flushes) = members.workers[member].in_flight.take() {
                members.commit(flushes);
            }
            let flushes = members.workers[member].partitions.take(|_| true).0;
            members.commit(flushes);
            let worker = &mut members.workers[member];
            for partition in worker.partitions.held() {
                if let State::Stopped(_) = worker.partitions.states[&partition] {
                    worker.step(partition, Event::Taken);
                    worker.step(partition, Event::Given);
                }
            }
            worker.find(&members.committed);
            worker.hear();
            worker.learn_schemas();
            worker.read(&model.logs, usize::MAX);
            let flushes = worker.partitions.take(|_| true).0;
            assert_eq!(worker.partitions.due(), Due::Never);
            members.commit(flushes);
        }
        members.check(&model);
        for (committed, log) in members.committed.iter().zip(&model.logs) {
            assert_eq!(committed.next, log.end);
        }
    }
}

prop_state_machine! {
    #![proptest_config(Config { cases: 512, ..Config::default() })]

    #[test]
    fn whatever_becomes_of_flushes_and_members_each_message_is_counted_once(
        sequential 1..120 => Aggregators
    );
}
