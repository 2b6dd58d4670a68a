use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { interval: Duration::from_secs(1), batch_bytes: 1000, total_bytes: 1500 };

fn core() -> Core {
    Core::new(BucketWidth::MINUTE, LIMITS)
}

fn increment<'a>(key: &'a str, delta: i64) -> Increment<'a> {
    Increment { namespace: "ns", key, delta, at_ms: 0, id: None }
}

fn rejected(partition: i32, offset: i64) -> Rejected {
    Rejected { partition, offset, reason: Reject::NotFramed, detail: String::new(), key: None, payload: None }
}

#[test]
fn a_flush_is_due_one_interval_after_the_first_message() {
    let (mut core, start) = (core(), Instant::now());
    core.assign(0, 5);
    assert_eq!(core.due(), Due::Never);
    core.count(0, 5, &[increment("a", 1)], start).unwrap();
    core.count(0, 6, &[increment("a", 1)], start + Duration::from_millis(400)).unwrap();
    assert_eq!(core.due(), Due::At(start + LIMITS.interval));
    core.take(|_| true);
    assert_eq!(core.due(), Due::Never);
}

#[test]
fn a_batch_that_reaches_its_limit_is_cut_and_the_next_one_follows_it() {
    let (mut core, now) = (core(), Instant::now());
    core.assign(0, 0);
    let key = "k".repeat(LIMITS.batch_bytes);
    core.count(0, 0, &[increment(&key, 1)], now).unwrap();
    core.count(0, 1, &[increment("b", 1)], now).unwrap();
    assert_eq!(core.due(), Due::At(now + LIMITS.interval));
    let (flushes, _) = core.take(|_| true);
    assert_eq!(flushes.iter().map(|(p, f)| (*p, f.from, f.to)).collect::<Vec<_>>(), [(0, 0, 1), (0, 1, 2)]);
    assert_eq!(core.due(), Due::Never);
}

#[test]
fn partitions_that_reach_the_limit_together_are_due_at_once() {
    let (mut core, now) = (core(), Instant::now());
    let key = "k".repeat(LIMITS.batch_bytes - 200);
    for partition in 0..2 {
        core.assign(partition, 0);
        core.count(partition, 0, &[increment(&key, 1)], now).unwrap();
        core.measure();
    }
    assert_eq!(core.due(), Due::Now);
    core.forget(1);
    assert_eq!(core.due(), Due::At(now + LIMITS.interval));
}

#[test]
fn a_revoked_partition_is_flushed_alone() {
    let (mut core, now) = (core(), Instant::now());
    core.assign(0, 0);
    core.assign(1, 10);
    core.count(0, 0, &[increment("a", 1)], now).unwrap();
    core.count(1, 10, &[increment("a", 2)], now).unwrap();
    core.reject(rejected(1, 11), now);
    let (flushes, rejects) = core.take(|partition| partition == 1);
    assert_eq!(rejects, [rejected(1, 11)]);
    assert_eq!(flushes.iter().map(|(p, f)| (*p, f.from, f.to)).collect::<Vec<_>>(), [(1, 10, 12)]);
    assert_eq!(core.due(), Due::At(now + LIMITS.interval));
    assert_eq!((core.next(0), core.next(1)), (Some(1), Some(12)));
}

#[test]
fn a_forgotten_partition_leaves_nothing_behind() {
    let (mut core, now) = (core(), Instant::now());
    core.assign(0, 0);
    core.count(0, 0, &[increment("a", 1)], now).unwrap();
    core.reject(rejected(0, 1), now);
    core.forget(0);
    assert_eq!(core.due(), Due::Never);
    let (flushes, rejects) = core.take(|_| true);
    assert!(flushes.is_empty() && rejects.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Count {
        partition: i32,
        delta: i64,
        gap: i64,
    },
    Reject {
        partition: i32,
        gap: i64,
    },
    Commit,
    /// A flush that did not commit: everything not committed is read again.
    Fail,
    /// The partition goes away after a flush, and comes back.
    Revoke {
        partition: i32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3i32, -5i64..5, 0i64..3).prop_map(|(partition, delta, gap)| Step::Count { partition, delta, gap }),
        1 => (0..3i32, 0i64..3).prop_map(|(partition, gap)| Step::Reject { partition, gap }),
        2 => Just(Step::Commit),
        1 => Just(Step::Fail),
        1 => (0..3i32).prop_map(|partition| Step::Revoke { partition }),
    ]
}

/// One partition of the model: its log, and what was committed of it.
#[derive(Default)]
struct Log {
    /// (offset, delta); `None` for a message that is rejected.
    messages: Vec<(i64, Option<i64>)>,
    end: i64,
    committed: i64,
    sum: i64,
    seen: u64,
}

impl Log {
    fn append(&mut self, gap: i64, delta: Option<i64>) {
        self.messages.push((self.end + gap, delta));
        self.end += gap + 1;
    }

    fn commit(&mut self, flush: &Flush) {
        assert_eq!(flush.from, self.committed, "the chain is unbroken");
        self.committed = flush.to;
        self.sum += flush.sums.iter().map(|delta| delta.sum).sum::<i64>();
        self.seen += flush.counted + flush.duplicate + flush.rejected;
    }
}

/// Reads each partition's log on from where the core is.
fn read(core: &mut Core, logs: &[Log], now: Instant) {
    for (partition, log) in logs.iter().enumerate() {
        let partition = partition as i32;
        let Some(next) = core.next(partition) else { continue };
        for (offset, delta) in log.messages.iter().filter(|(offset, _)| *offset >= next) {
            match delta {
                Some(delta) => core.count(partition, *offset, &[increment("k", *delta)], now).unwrap(),
                None => core.reject(rejected(partition, *offset), now),
            }
        }
    }
}

proptest! {
    /// Whatever flushes fail, and whichever partitions come and go, what was committed is the log.
    #[test]
    fn what_is_committed_is_the_log(steps in prop::collection::vec(step(), 1..80), batch_bytes in 1usize..60) {
        let (mut core, now) = (Core::new(BucketWidth::MINUTE, Limits { batch_bytes, ..LIMITS }), Instant::now());
        let mut logs: Vec<Log> = (0..3).map(|_| Log::default()).collect();
        (0..3).for_each(|partition| core.assign(partition, 0));
        for step in steps {
            match step {
                Step::Count { partition, delta, gap } => logs[partition as usize].append(gap, Some(delta)),
                Step::Reject { partition, gap } => logs[partition as usize].append(gap, None),
                Step::Commit => core.take(|_| true).0.iter().for_each(|(p, flush)| logs[*p as usize].commit(flush)),
                Step::Fail => {
                    core.take(|_| true);
                    for (partition, log) in logs.iter().enumerate() {
                        core.forget(partition as i32);
                        core.assign(partition as i32, log.committed);
                    }
                }
                Step::Revoke { partition } => {
                    let (flushes, _) = core.take(|p| p == partition);
                    flushes.iter().for_each(|(p, flush)| logs[*p as usize].commit(flush));
                    core.forget(partition);
                    core.assign(partition, logs[partition as usize].committed);
                }
            }
            read(&mut core, &logs, now);
        }
        core.take(|_| true).0.iter().for_each(|(p, flush)| logs[*p as usize].commit(flush));
        for log in &logs {
            prop_assert_eq!(log.committed, log.end);
            prop_assert_eq!(log.seen, log.messages.len() as u64);
            prop_assert_eq!(log.sum, log.messages.iter().filter_map(|(_, delta)| *delta).sum::<i64>());
        }
    }
}
