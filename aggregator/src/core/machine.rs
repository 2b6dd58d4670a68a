//! Two members of a group as state machines against a model of their topic: flushes that are in
//! flight while messages come, that commit, abort, or commit without their member learning of it;
//! partitions that are handed over, and lost.

use proptest::prelude::*;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::*;

const PARTITIONS: usize = 3;
const MEMBERS: usize = 2;
/// Small enough that batches are cut.
const LIMITS: Limits =
    Limits { interval: Duration::from_secs(1), batch_bytes: 60, total_bytes: 200 };

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
                1 => Just(Outcome::CommittedUnknown)
            ]
        };
        prop_oneof![
            6 => (0..PARTITIONS, 0i64..3, prop::option::weighted(0.9, -5i64..5))
                .prop_map(|(partition, gap, delta)| Step::Append { partition, gap, delta }),
            6 => (0..MEMBERS, 1usize..6).prop_map(|(member, messages)| Step::Read { member, messages }),
            3 => (0..MEMBERS).prop_map(|member| Step::Flush { member }),
            3 => (0..MEMBERS, outcome()).prop_map(|(member, outcome)| Step::End { member, outcome }),
            1 => (0..PARTITIONS).prop_map(|partition| Step::HandOver { partition }),
            1 => (0..MEMBERS).prop_map(|member| Step::Lose { member }),
        ]
        .boxed()
    }

    /// What the worker sees to: one flush at a time, and none in flight where partitions are let
    /// go.
    fn preconditions(model: &Model, step: &Step) -> bool {
        match step {
            Step::Flush { member } => !model.in_flight[*member],
            Step::End { member, .. } => model.in_flight[*member],
            Step::HandOver { partition } => !model.in_flight[model.owner[*partition]],
            Step::Append { .. } | Step::Read { .. } | Step::Lose { .. } => true,
        }
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        match *step {
            Step::Append { partition, gap, delta } => {
                let log = &mut model.logs[partition];
                log.messages.push((log.end + gap, delta));
                log.end += gap + 1;
            }
            Step::Read { .. } => {}
            Step::Flush { member } => model.in_flight[member] = true,
            Step::End { member, .. } => model.in_flight[member] = false,
            Step::HandOver { partition } => model.owner[partition] = 1 - model.owner[partition],
            Step::Lose { member } => {
                model.in_flight[member] = false;
                model
                    .owner
                    .iter_mut()
                    .filter(|owner| **owner == member)
                    .for_each(|owner| *owner = 1 - member);
            }
        }
        model
    }
}

/// What was committed of a partition.
#[derive(Clone, Copy, Debug, Default)]
struct Committed {
    next: i64,
    counted: Counted,
}

/// The cores of both members, and what the broker has of them.
struct Members {
    cores: [Core; MEMBERS],
    in_flight: [Option<Vec<(i32, Flush)>>; MEMBERS],
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

    /// What the core has now is dropped, and the partition read again by its owner.
    fn take_on(&mut self, member: usize, partition: usize) {
        self.cores.iter_mut().for_each(|core| core.forget(partition as i32));
        let start = Start::afresh(partition as i32, self.committed[partition].next);
        self.cores[member].assign(&start, Instant::now());
    }

    fn read(&mut self, member: usize, logs: &[Log; PARTITIONS], messages: usize) {
        let (core, now) = (&mut self.cores[member], Instant::now());
        for (partition, log) in (0..).zip(logs) {
            let Some(next) = core.next(partition) else { continue };
            for (offset, delta) in
                log.messages.iter().filter(|(offset, _)| *offset >= next).take(messages)
            {
                match delta {
                    Some(delta) => {
                        // Some counters are met again, others are new.
                        let key = if offset % 3 == 0 {
                            "often"
                        } else {
                            ["a", "b", "c"][(offset % 4 % 3) as usize]
                        };
                        let increment =
                            Increment { namespace: "ns", key, delta: *delta, at_ms: 0, id: None };
                        let envelope = Envelope {
                            offset: *offset,
                            timestamp_ms: None,
                            schema: 7,
                            batch_id: None,
                        };
                        core.count(partition, &envelope, &[increment], now).unwrap();
                    }
                    None => core.reject(
                        Rejected {
                            partition,
                            offset: *offset,
                            reason: Reject::NotFramed,
                            detail: String::new(),
                            key: None,
                            payload: None,
                        },
                        now,
                    ),
                }
            }
        }
    }

    fn check(&self, model: &Model) {
        for (partition, log) in model.logs.iter().enumerate() {
            let Committed { next, counted } = self.committed[partition];
            assert_eq!(
                counted,
                log.sum_below(next),
                "partition {partition}, committed up to {next}"
            );
            let owner = &self.cores[model.owner[partition]];
            assert!(
                owner.next(partition as i32).is_some_and(|at| at >= next),
                "its owner reads on from there"
            );
        }
    }
}

struct Aggregators;

impl StateMachineTest for Aggregators {
    type SystemUnderTest = Members;
    type Reference = Model;

    fn init_test(model: &Model) -> Members {
        let cores = [(); MEMBERS].map(|()| Core::new(Rules::default(), LIMITS));
        let mut members = Members { cores, in_flight: [None, None], committed: Default::default() };
        for (partition, owner) in model.owner.iter().enumerate() {
            members.take_on(*owner, partition);
        }
        members
    }

    /// `model` is as it is after the step.
    fn apply(mut members: Members, model: &Model, step: Step) -> Members {
        match step {
            Step::Append { .. } => {}
            Step::Read { member, messages } => members.read(member, &model.logs, messages),
            Step::Flush { member } => {
                members.in_flight[member] = Some(members.cores[member].take(|_| true).0)
            }
            Step::End { member, outcome } => {
                let flushes = members.in_flight[member].take().expect("a flush is in flight");
                if matches!(outcome, Outcome::Committed | Outcome::CommittedUnknown) {
                    members.commit(flushes);
                }
                if matches!(outcome, Outcome::Aborted | Outcome::CommittedUnknown) {
                    for partition in
                        (0..PARTITIONS).filter(|partition| model.owner[*partition] == member)
                    {
                        members.take_on(member, partition);
                    }
                }
            }
            Step::HandOver { partition } => {
                let flushes =
                    members.cores[1 - model.owner[partition]].take(|p| p == partition as i32).0;
                members.commit(flushes);
                members.take_on(model.owner[partition], partition);
            }
            Step::Lose { member } => {
                members.in_flight[member] = None;
                let lost: Vec<i32> = members.cores[member].partitions().collect();
                for partition in lost {
                    members.take_on(1 - member, partition as usize);
                }
            }
        }
        members
    }

    fn check_invariants(members: &Members, model: &Model) {
        members.check(model);
    }

    /// Left alone, they come to the log's end.
    fn teardown(mut members: Members, model: Model) {
        for member in 0..MEMBERS {
            if let Some(flushes) = members.in_flight[member].take() {
                members.commit(flushes);
            }
            members.read(member, &model.logs, usize::MAX);
            let flushes = members.cores[member].take(|_| true).0;
            members.commit(flushes);
            assert_eq!(members.cores[member].due(), Due::Never);
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
    fn whatever_becomes_of_flushes_and_members_each_message_is_counted_once(sequential 1..120 => Aggregators);
}
