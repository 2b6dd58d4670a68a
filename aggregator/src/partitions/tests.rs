use std::num::NonZeroU32;

use proptest::prelude::*;
use tally_counts::{BucketWidth, Horizon, IdScope};

use super::*;

const LIMITS: Limits = Limits {
    interval: Duration::from_secs(1),
    batch_bytes: 1000,
    total_bytes: 1500,
    gone_after: Duration::from_secs(9),
};

fn partitions() -> Partitions {
    Partitions::new(Rules::default(), LIMITS)
}

/// Gives a partition, and answers at once where it is to be read from.
fn take_on(partitions: &mut Partitions, point: ResumePoint, now: Instant) {
    let (partition, read_from) = (point.partition, point.read_from);
    let Action::Locate(ticket) = partitions.step(partition, Event::Given, now) else {
        panic!("a partition that is given is looked for");
    };
    let action = partitions.step(partition, Event::Located(ticket, point), now);
    assert_eq!(action, Action::ReadFrom(read_from));
}

fn forget(partitions: &mut Partitions, partition: i32) {
    assert_eq!(partitions.step(partition, Event::Taken, Instant::now()), Action::Stop);
}

/// The next offset to read of a partition that is read.
fn next(partitions: &Partitions, partition: i32) -> Option<i64> {
    partitions.states.get(&partition).and_then(State::next)
}

fn at<'a>(offset: i64) -> Envelope<'a> {
    Envelope { offset, timestamp_ms: None, schema: 7, batch_id: None }
}

fn increment<'a>(key: &'a str, delta: i64) -> Increment<'a> {
    Increment { namespace: "ns", key, delta, at_ms: 0, id: None }
}

fn rejected(partition: i32, offset: i64) -> Rejected {
    Rejected {
        partition,
        offset,
        timestamp_ms: None,
        reason: Reject::NotFramed,
        detail: String::new(),
        key: None,
        payload: None,
        truncated: None,
    }
}

#[test]
fn the_oldest_message_that_waits_is_known_until_its_flush_is_taken() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, ResumePoint::afresh(0, 5), now);
    assert_eq!(partitions.oldest_ms(0), None);
    partitions.reject(Rejected { timestamp_ms: Some(70), ..rejected(0, 5) }, b"", now);
    let later = Envelope { timestamp_ms: Some(80), ..at(6) };
    partitions.count(0, &later, &[increment("a", 1)], now).unwrap();
    assert_eq!(partitions.oldest_ms(0), Some(70));
    partitions.take(|_| true);
    assert_eq!(partitions.take_oldest_ms(0), Some(70));
    let next = Envelope { timestamp_ms: Some(90), ..at(7) };
    partitions.count(0, &next, &[increment("a", 1)], now).unwrap();
    assert_eq!(partitions.oldest_ms(0), Some(90));
}

#[test]
fn a_flush_is_due_one_interval_after_the_first_message() {
    let (mut partitions, start) = (partitions(), Instant::now());
    take_on(&mut partitions, ResumePoint::afresh(0, 5), Instant::now());
    assert_eq!(partitions.due(), Due::Never);
    partitions.count(0, &at(5), &[increment("a", 1)], start).unwrap();
    partitions.count(0, &at(6), &[increment("a", 1)], start + Duration::from_millis(400)).unwrap();
    assert_eq!(partitions.due(), Due::At(start + LIMITS.interval));
    partitions.take(|_| true);
    assert_eq!(partitions.due(), Due::Never);
}

#[test]
fn a_batch_that_reaches_its_limit_is_cut_and_the_next_one_follows_it() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, ResumePoint::afresh(0, 0), Instant::now());
    let key = "k".repeat(LIMITS.batch_bytes);
    partitions.count(0, &at(0), &[increment(&key, 1)], now).unwrap();
    partitions.count(0, &at(1), &[increment("b", 1)], now).unwrap();
    assert_eq!(partitions.due(), Due::At(now + LIMITS.interval));
    let (flushes, _) = partitions.take(|_| true);
    assert_eq!(
        flushes.iter().map(|(p, f)| (*p, f.from, f.to)).collect::<Vec<_>>(),
        [(0, 0, 1), (0, 1, 2)]
    );
    assert_eq!(partitions.due(), Due::Never);
}

#[test]
fn partitions_that_reach_the_limit_together_are_due_at_once() {
    let (mut partitions, now) = (partitions(), Instant::now());
    let key = "k".repeat(LIMITS.batch_bytes - 200);
    for partition in 0..2 {
        take_on(&mut partitions, ResumePoint::afresh(partition, 0), Instant::now());
        partitions.count(partition, &at(0), &[increment(&key, 1)], now).unwrap();
        partitions.measure();
    }
    assert_eq!(partitions.due(), Due::Now);
    forget(&mut partitions, 1);
    assert_eq!(partitions.due(), Due::At(now + LIMITS.interval));
}

#[test]
fn after_a_flush_that_was_late_the_next_ones_hold_less_and_follow_each_other() {
    const MOST: usize = 40_000;
    let limits = Limits { batch_bytes: 4 * MOST, total_bytes: 4 * MOST, ..LIMITS };
    let (mut partitions, now) = (Partitions::new(Rules::default(), limits), Instant::now());
    for partition in 0..2 {
        take_on(&mut partitions, ResumePoint::afresh(partition, 0), now);
    }
    partitions.flush_size().reduce(2 * MOST);
    let mut ends = [0; 2];
    for _ in 0..3 {
        let mut held = 0;
        let mut offset = ends[0];
        while partitions.due() != Due::Now {
            let key = format!("{offset:01000}");
            for partition in 0..2 {
                partitions.count(partition, &at(offset), &[increment(&key, 1)], now).unwrap();
                partitions.reject(rejected(partition, offset + 1), b"", now);
            }
            offset += 2;
        }
        let (flushes, rejects) = partitions.take(|_| true);
        held += rejects.iter().map(Rejected::bytes).sum::<usize>();
        for (partition, flush) in flushes {
            let end = &mut ends[partition as usize];
            assert_eq!(flush.from, *end, "the chain is unbroken");
            *end = flush.to;
            held += flush.sums.encoded_bytes();
        }
        assert!((MOST / 2..MOST + 4_000).contains(&held), "{held} bytes");
    }
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn a_revoked_partition_is_flushed_alone() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, ResumePoint::afresh(0, 0), Instant::now());
    take_on(&mut partitions, ResumePoint::afresh(1, 10), Instant::now());
    partitions.count(0, &at(0), &[increment("a", 1)], now).unwrap();
    partitions.count(1, &at(10), &[increment("a", 2)], now).unwrap();
    partitions.reject(rejected(1, 11), b"", now);
    let (flushes, rejects) = partitions.take(|partition| partition == 1);
    assert_eq!(rejects, [rejected(1, 11)]);
    assert_eq!(flushes.iter().map(|(p, f)| (*p, f.from, f.to)).collect::<Vec<_>>(), [(1, 10, 12)]);
    assert_eq!(partitions.due(), Due::At(now + LIMITS.interval));
    assert_eq!((next(&partitions, 0), next(&partitions, 1)), (Some(1), Some(12)));
}

#[test]
fn a_forgotten_partition_leaves_nothing_behind() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, ResumePoint::afresh(0, 0), Instant::now());
    partitions.count(0, &at(0), &[increment("a", 1)], now).unwrap();
    partitions.reject(rejected(0, 1), b"", now);
    forget(&mut partitions, 0);
    assert_eq!(partitions.due(), Due::Never);
    let (flushes, rejects) = partitions.take(|_| true);
    assert!(flushes.is_empty() && rejects.is_empty());
}

fn once<'a>(id: &'a str, delta: i64) -> Increment<'a> {
    Increment { id: Some(id), ..increment("k", delta) }
}

/// Of a hundred offsets.
fn resumed(next: i64, metadata: &str) -> ResumePoint {
    let horizon = Horizon { offsets: 100, ..Horizon::MILLION };
    ResumePoint::resumed(0, next, metadata, &Rules { horizon, ..Rules::default() }).unwrap()
}

#[test]
fn below_the_committed_offset_ids_are_remembered_and_nothing_is_counted() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, resumed(10, "ids=7"), now);
    assert_eq!(next(&partitions, 0), Some(7));
    assert!(partitions.is_to_restore(0, 7));
    partitions.remember(0, &at(7), &[once("a", 1)], now);
    partitions.pass_over(0, 8, Reject::NotFramed, b"", now);
    assert_eq!(
        (next(&partitions, 0), partitions.due(), partitions.next_restored()),
        (Some(9), Due::Never, None)
    );
    assert!(partitions.take(|_| true).0.is_empty());
    // What would be offset 9 is no message.
    assert!(!partitions.is_to_restore(0, 10));
    let restored = partitions.next_restored().unwrap();
    assert_eq!((restored.partition, restored.messages, restored.ids), (0, 2, 1));
    partitions.count(0, &at(10), &[once("a", 1), once("b", 2)], now).unwrap();
    let (flushes, _) = partitions.take(|_| true);
    let (_, flush) = &flushes[0];
    assert_eq!(
        (flush.from, flush.to, flush.increments, flush.duplicates.increments),
        (10, 11, 1, 1)
    );
    assert_eq!(partitions.bookmark(0, 11).from, Some(10));
}

#[test]
fn a_rebuild_ends_with_the_message_before_the_committed_offset() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, resumed(2, "ids=1"), now);
    partitions.remember(0, &at(1), &[once("a", 1)], now + Duration::from_secs(2));
    let restored = partitions.next_restored().unwrap();
    assert_eq!((restored.messages, restored.seconds), (1, 2.0));
    assert_eq!((next(&partitions, 0), partitions.is_to_restore(0, 2)), (Some(2), false));
    assert_eq!(partitions.next_restored(), None);
}

#[test]
fn a_partition_that_goes_away_while_its_ids_come_back_leaves_nothing_behind() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, resumed(10, "ids=7"), now);
    partitions.remember(0, &at(7), &[once("a", 1)], now);
    forget(&mut partitions, 0);
    assert_eq!((next(&partitions, 0), partitions.due()), (None, Due::Never));
    take_on(&mut partitions, resumed(10, "ids=none"), now);
    assert_eq!((next(&partitions, 0), partitions.next_restored()), (Some(10), None));
}

#[test]
fn reading_begins_where_the_ids_do() {
    let read_from = |next, metadata| resumed(next, metadata).read_from;
    assert_eq!(read_from(500, "ids=450"), 450);
    assert_eq!(read_from(500, "ids=none"), 500);
    assert_eq!((read_from(500, ""), read_from(50, "mine")), (400, 0));
    assert_eq!(resumed(500, "").not_before(420).read_from, 420);
    assert_eq!(resumed(500, "").not_before(20).read_from, 400);
}

#[test]
fn what_was_counted_by_other_rules_is_not_counted_on() {
    let (ours, noted) = (Rules::default(), |rules: &Rules| {
        let mut partitions = Partitions::new(*rules, LIMITS);
        take_on(&mut partitions, ResumePoint::afresh(0, 5), Instant::now());
        partitions.bookmark(0, 5).to_string()
    });
    let others = Rules { max_future_s: 7, ..ours };
    assert_eq!(ResumePoint::resumed(0, 5, &noted(&ours), &ours).map(|start| start.next), Ok(5));
    let refused = ResumePoint::resumed(0, 5, &noted(&others), &ours);
    assert_eq!(refused, Err(OtherRules { have: others.to_string(), want: ours }));
}

#[test]
fn which_messages_left_no_ids_is_known_where_it_was_noted_and_only_while_they_come_back() {
    for (metadata, knows) in [("ids=7", true), ("", false)] {
        let (mut partitions, now) = (partitions(), Instant::now());
        take_on(&mut partitions, resumed(10, metadata), now);
        assert_eq!(partitions.waits_for_gone(0, now), knows, "{metadata}");
        assert!(partitions.is_to_restore(0, 9) && !partitions.is_to_restore(0, 10));
        assert!(!partitions.waits_for_gone(0, now), "{metadata}");
    }
}

#[test]
fn a_schema_that_is_gone_is_waited_for_a_while_and_the_ids_that_are_given_up_are_told() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, resumed(10, "ids=7"), now);
    assert!(partitions.waits_for_gone(0, now));
    let later = now + LIMITS.gone_after;
    assert!(partitions.waits_for_gone(0, later - Duration::from_millis(1)));
    // It came back, and the next message's is gone: that one is waited for as long.
    partitions.remember(0, &at(7), &[once("a", 1)], later);
    assert!(partitions.waits_for_gone(0, later));
    let later = later + LIMITS.gone_after;
    assert!(!partitions.waits_for_gone(0, later));
    for offset in [8, 9] {
        partitions.miss(0, offset, 5);
        partitions.pass_over(0, offset, Reject::UnknownSchema, &wire::prefix(5), later);
    }
    let restored = partitions.next_restored().expect("the restore is over");
    assert_eq!(restored.gone, Some(Gone { messages: 2, offset: 8, schema: 5 }));
    assert_eq!((restored.messages, restored.ids), (3, 1));
    // The next restore passes them over without a question.
    assert_eq!(partitions.bookmark(0, 10).to_string().split(' ').nth(1), Some("unread=5:8-9"));
}

#[test]
fn a_batch_is_cut_before_a_message_that_it_has_no_room_for() {
    let (mut partitions, now) = (
        Partitions::new(Rules::default(), Limits { batch_bytes: usize::MAX, ..LIMITS }),
        Instant::now(),
    );
    take_on(&mut partitions, ResumePoint::afresh(0, 0), now);
    let names: Vec<_> = (0..5100).map(|n| format!("{n:04000}")).collect();
    let all: Vec<_> = names.iter().map(|name| increment(name, 1)).collect();
    for (offset, third) in (0..).zip(all.chunks(1700)) {
        partitions.count(0, &at(offset), third, now).unwrap();
    }
    let (flushes, _) = partitions.take(|_| true);
    assert_eq!(flushes.iter().map(|(_, f)| (f.from, f.to)).collect::<Vec<_>>(), [(0, 2), (2, 3)]);
}

fn located(partitions: &mut Partitions, ticket: Ticket) -> Action {
    let point = ResumePoint::afresh(0, 5);
    partitions.step(0, Event::Located(ticket, point), Instant::now())
}

#[test]
fn an_answer_to_an_earlier_request_starts_nothing() {
    let (mut partitions, now) = (partitions(), Instant::now());
    let Action::Locate(first) = partitions.step(0, Event::Given, now) else {
        panic!("not located")
    };
    assert_eq!(partitions.step(0, Event::Taken, now), Action::Stop);
    assert_eq!(located(&mut partitions, first), Action::Nothing);
    let Action::Locate(second) = partitions.step(0, Event::Given, now) else {
        panic!("not located")
    };
    assert_eq!(located(&mut partitions, first), Action::Nothing);
    assert_eq!(located(&mut partitions, second), Action::ReadFrom(5));
    assert_eq!(located(&mut partitions, second), Action::Nothing);
}

#[test]
fn a_partition_that_waits_for_a_schema_keeps_its_sums_and_reads_on_where_it_was() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, ResumePoint::afresh(0, 5), now);
    partitions.count(0, &at(5), &[increment("a", 1)], now).unwrap();
    let missing = || Event::SchemaMissing { schema: 9 };
    assert_eq!(partitions.step(0, missing(), now), Action::Stop);
    assert_eq!(partitions.waiting().collect::<Vec<_>>(), [(0, 9)]);
    // A stray message must not make it read on past the message that it waits with.
    assert_eq!(partitions.step(0, Event::Strayed, now), Action::Nothing);
    let (flushes, _) = partitions.take(|_| true);
    assert_eq!(flushes.iter().map(|(p, f)| (*p, f.from, f.to)).collect::<Vec<_>>(), [(0, 5, 6)]);
    assert_eq!(partitions.step(0, Event::SchemaLearned, now), Action::ReadFrom(6));
    assert_eq!(partitions.waiting().count(), 0);
}

#[test]
fn a_partition_that_waits_for_a_schema_goes_on_restoring_where_it_was() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, resumed(10, "ids=7"), now);
    partitions.remember(0, &at(7), &[once("a", 1)], now);
    assert_eq!(partitions.step(0, Event::SchemaMissing { schema: 9 }, now), Action::Stop);
    assert!(partitions.waits_for_gone(0, now));
    assert_eq!(partitions.step(0, Event::SchemaLearned, now), Action::ReadFrom(8));
    assert!(partitions.is_to_restore(0, 8));
}

#[test]
fn a_parked_partition_stays_parked_until_it_is_taken_or_given_again() {
    let (mut partitions, now) = (partitions(), Instant::now());
    take_on(&mut partitions, ResumePoint::afresh(0, 5), now);
    partitions.count(0, &at(5), &[increment("a", 1)], now).unwrap();
    assert_eq!(partitions.step(0, Event::Parked, now), Action::Stop);
    assert!(partitions.take(|_| true).0.is_empty(), "its sums are dropped");
    for event in [Event::Rewound, Event::SchemaLearned, Event::Strayed] {
        assert_eq!(partitions.step(0, event, now), Action::Nothing);
    }
    assert_eq!(partitions.held(), [0]);
    assert_eq!(partitions.step(0, Event::Taken, now), Action::Stop);
    assert!(partitions.held().is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Count {
        partition: i32,
        delta: i64,
        id: Option<&'static str>,
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
    let id = || prop::option::of(prop::sample::select(vec!["a", "b", "c", "d", "e"]));
    prop_oneof![
        6 => (0..3i32, -5i64..5, id(), 0i64..3)
            .prop_map(|(partition, delta, id, gap)| Step::Count { partition, delta, id, gap }),
        1 => (0..3i32, 0i64..3).prop_map(|(partition, gap)| Step::Reject { partition, gap }),
        2 => Just(Step::Commit),
        1 => Just(Step::Fail),
        1 => (0..3i32).prop_map(|partition| Step::Revoke { partition }),
    ]
}

const FEW: Rules = Rules {
    width: BucketWidth::MINUTE,
    horizon: Horizon { offsets: 12, ids: NonZeroU32::new(3).unwrap() },
    ids_within: IdScope::Counter,
    max_future_s: 0,
    min_event_s: 0,
};

/// One partition of the model: its log, and what was committed of it.
#[derive(Default)]
struct Log {
    /// `None` for a message that is rejected.
    messages: Vec<(i64, Option<Increment<'static>>)>,
    end: i64,
    committed: i64,
    metadata: String,
    sum: i64,
    duplicate: u64,
    seen: u64,
}

impl Log {
    fn append(&mut self, gap: i64, increment: Option<Increment<'static>>) {
        self.messages.push((self.end + gap, increment));
        self.end += gap + 1;
    }

    fn commit(&mut self, flush: &Flush) {
        assert_eq!(flush.from, self.committed, "the chain is unbroken");
        self.committed = flush.to;
        self.sum += flush.sums.iter().map(|delta| delta.sum).sum::<i64>();
        self.duplicate += flush.duplicate;
        self.seen += flush.counted + flush.duplicate + flush.rejected;
    }

    fn start(&self, partition: i32) -> ResumePoint {
        ResumePoint::resumed(partition, self.committed, &self.metadata, &FEW).unwrap()
    }

    /// The sum without duplicates, and how many there are.
    fn expected(&self) -> (i64, u64) {
        let (mut sum, mut duplicate) = (0, 0);
        let mut recent: Vec<(&str, i64)> = Vec::new();
        for (offset, increment) in &self.messages {
            let Some(Increment { delta, id, .. }) = increment else { continue };
            recent.retain(|(_, at)| *at >= offset - i64::from(FEW.horizon.offsets));
            let known = recent.iter().position(|(known, _)| Some(*known) == *id);
            match known {
                Some(place) => drop(recent.remove(place)),
                None => sum += delta,
            }
            duplicate += u64::from(known.is_some());
            recent.extend(id.map(|id| (id, *offset)));
            if recent.len() > FEW.horizon.ids.get() as usize {
                recent.remove(0);
            }
        }
        (sum, duplicate)
    }
}

/// Flushes and commits the wanted partitions, each with its bookmark.
fn commit(partitions: &mut Partitions, logs: &mut [Log], wanted: impl Fn(i32) -> bool) {
    for (partition, flush) in partitions.take(wanted).0 {
        logs[partition as usize].commit(&flush);
    }
    for (partition, log) in (0..).zip(logs) {
        if next(partitions, partition) == Some(log.committed) {
            log.metadata = partitions.bookmark(partition, log.committed).to_string();
        }
    }
}

fn again(partitions: &mut Partitions, partition: i32, log: &Log) {
    forget(partitions, partition);
    take_on(partitions, log.start(partition), Instant::now());
}

/// Reads each partition's log on from where its fold is.
fn read(partitions: &mut Partitions, logs: &[Log], now: Instant) {
    for (partition, log) in (0..).zip(logs) {
        let Some(next) = next(partitions, partition) else { continue };
        for &(offset, increment) in log.messages.iter().filter(|(offset, _)| *offset >= next) {
            match (partitions.is_to_restore(partition, offset), increment) {
                (true, Some(increment)) => {
                    partitions.remember(partition, &at(offset), &[increment], now)
                }
                (true, None) => {
                    partitions.pass_over(partition, offset, Reject::NotFramed, b"", now)
                }
                (false, Some(increment)) => {
                    partitions.count(partition, &at(offset), &[increment], now).unwrap()
                }
                (false, None) => partitions.reject(rejected(partition, offset), b"", now),
            }
        }
    }
}

proptest! {
    /// Whatever flushes fail, and whichever partitions come and go, what was committed is the log
    /// without its duplicates.
    #[test]
    fn what_is_committed_is_the_log(
        steps in prop::collection::vec(step(), 1..80),
        batch_bytes in 1usize..60,
    ) {
        let now = Instant::now();
        let mut partitions = Partitions::new(FEW, Limits { batch_bytes, ..LIMITS });
        let mut logs: Vec<Log> = (0..3).map(|_| Log::default()).collect();
        for partition in 0..3 {
            take_on(&mut partitions, ResumePoint::afresh(partition, 0), now);
        }
        for step in steps {
            match step {
                Step::Count { partition, delta, id, gap } => {
                    let increment = Increment { id, ..increment("k", delta) };
                    logs[partition as usize].append(gap, Some(increment));
                }
                Step::Reject { partition, gap } => logs[partition as usize].append(gap, None),
                Step::Commit => commit(&mut partitions, &mut logs, |_| true),
                Step::Fail => {
                    partitions.take(|_| true);
                    for (partition, log) in (0..).zip(&logs) {
                        again(&mut partitions, partition, log);
                    }
                }
                Step::Revoke { partition } => {
                    commit(&mut partitions, &mut logs, |p| p == partition);
                    again(&mut partitions, partition, &logs[partition as usize]);
                }
            }
            read(&mut partitions, &logs, now);
        }
        commit(&mut partitions, &mut logs, |_| true);
        for log in &logs {
            prop_assert_eq!(log.committed, log.end);
            prop_assert_eq!(log.seen, log.messages.len() as u64);
            prop_assert_eq!((log.sum, log.duplicate), log.expected());
        }
    }
}
