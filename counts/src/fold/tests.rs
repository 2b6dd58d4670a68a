use std::collections::BTreeMap;
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;
use crate::ledger::RESERVED_NAMESPACE;
use crate::{Fingerprint, Horizon, IdScope};

fn increment<'a>(key: &'a str, delta: i64, at_ms: i64) -> Increment<'a> {
    Increment { namespace: "ns", key, delta, at_ms, id: None }
}

fn once<'a>(id: &'a str, delta: i64) -> Increment<'a> {
    Increment { id: Some(id), ..increment("k", delta, 0) }
}

const UNREAD: &[u8] = b"\0\0\0\0\x07";

fn at<'a>(offset: i64) -> Envelope<'a> {
    Envelope { offset, timestamp_ms: None, schema: 7, batch_id: None }
}

fn batch(offset: i64, id: &str) -> Envelope<'_> {
    Envelope { batch_id: Some(id), ..at(offset) }
}

fn rules(offsets: u32, ids: u32) -> Rules {
    Rules { horizon: Horizon { offsets, ids: NonZeroU32::new(ids).unwrap() }, ..Rules::default() }
}

fn fingerprint(flushes: &[Flush]) -> Fingerprint {
    flushes.iter().fold(Fingerprint::ZERO, |sum, flush| sum + flush.sums.fingerprint())
}

/// Per cell: sum and events.
fn totals<'a>(
    flushes: impl IntoIterator<Item = &'a Flush>,
) -> BTreeMap<(String, String, u32), (i128, i128)> {
    let mut totals: BTreeMap<_, (i128, i128)> = BTreeMap::new();
    for delta in flushes.into_iter().flat_map(|flush| flush.sums.iter()) {
        let cell = (delta.namespace.to_owned(), delta.key.to_owned(), delta.bucket_s);
        let total = totals.entry(cell).or_default();
        total.0 += i128::from(delta.sum);
        total.1 += i128::from(delta.events);
    }
    totals
}

#[test]
fn a_message_is_counted_whole_or_not_at_all() {
    let mut fold = Fold::new(Rules::default(), 5);
    fold.count(&at(5), &[increment("a", 3, 0)]).unwrap();
    fold.reject(6, Reject::Undecodable, b"");
    assert_eq!(
        fold.count(&at(9), &[increment("b", 1, 0), increment("c", 1, -1)]),
        Err(Reject::EventTimeOutOfRange)
    );
    fold.reject(9, Reject::Undecodable, b"");
    let flush = fold.take();
    assert_eq!(
        (flush.from, flush.to, flush.counted, flush.rejected, flush.increments),
        (5, 10, 1, 2, 1)
    );
    let deltas: Vec<_> = flush.sums.iter().map(|d| (d.key.to_owned(), d.sum)).collect();
    assert_eq!(deltas, [("a".to_owned(), 3)]);
}

#[test]
fn no_increment_is_refused_for_what_others_added() {
    let mut fold = Fold::new(Rules::default(), 0);
    for (offset, delta) in (0..).zip([i64::MAX, i64::MAX, 10, i64::MIN, -3]) {
        let message = [increment("a", delta, 0), increment("b", delta, 0)];
        assert_eq!(fold.count(&at(offset), &message), Ok(CountedAs::New));
    }
    let alone = [increment("a", i64::MAX, 0), increment("a", 1, 0)];
    assert_eq!(fold.count(&at(5), &alone), Ok(CountedAs::New));
    let flush = fold.take();
    let total = 2 * i128::from(i64::MAX) + 10 + i128::from(i64::MIN) - 3;
    let found = totals([&flush]);
    let cell = |key: &str| (String::from("ns"), key.to_owned(), 0);
    assert_eq!(found[&cell("b")], (total, 5));
    assert_eq!(found[&cell("a")], (total + i128::from(i64::MAX) + 1, 7));
    assert_eq!((flush.counted, flush.rejected, flush.increments), (6, 0, 12));
}

#[test]
fn the_reserved_namespace_and_bad_names_are_refused() {
    let mut fold = Fold::new(Rules::default(), 0);
    let long = "x".repeat(Fold::MAX_NAME_BYTES + 1);
    let reserved = Increment { namespace: RESERVED_NAMESPACE, ..increment("k", 1, 0) };
    assert_eq!(fold.count(&at(0), &[reserved]), Err(Reject::ReservedNamespace));
    assert_eq!(fold.count(&at(0), &[increment("", 1, 0)]), Err(Reject::NameOutOfRange));
    assert_eq!(fold.count(&at(0), &[increment(&long, 1, 0)]), Err(Reject::NameOutOfRange));
    assert!(fold.is_clean());
}

#[test]
fn memory_that_comes_back_late_does_not_replace_what_was_summed_since() {
    let mut fold = Fold::new(Rules::default(), 0);
    fold.count(&at(0), &[increment("a", 1, 0)]).unwrap();
    let first = fold.take();
    fold.reuse(first.sums);
    assert!(fold.sums().is_empty());
    fold.count(&at(1), &[increment("b", 2, 0)]).unwrap();
    let second = fold.take();
    assert_eq!((second.from, second.to, second.increments), (1, 2, 1));
    fold.count(&at(2), &[increment("c", 3, 0)]).unwrap();
    fold.reuse(second.sums);
    let keys = |sums: &Sums| sums.iter().map(|d| d.key.to_owned()).collect::<Vec<_>>();
    assert_eq!(keys(fold.sums()), ["c"]);
}

#[test]
#[should_panic(expected = "offset 3 comes after 4 was seen")]
fn a_log_out_of_order_is_a_bug() {
    let mut fold = Fold::new(Rules::default(), 3);
    fold.reject(3, Reject::Undecodable, b"");
    fold.reject(3, Reject::Undecodable, b"");
}

proptest! {
    /// Wherever the flushes fall, the sums and the fingerprint are those of the whole log.
    #[test]
    fn flushes_add_up_to_the_log(
        messages in prop::collection::vec(
            prop::collection::vec(("[a-d]", -9i64..9, 0i64..400_000), 1..5),
            1..60,
        ),
        flushes in prop::collection::vec(any::<bool>(), 60),
    ) {
        let mut whole = Fold::new(Rules::default(), 0);
        let mut parts = Fold::new(Rules::default(), 0);
        let mut taken = Vec::new();
        for (offset, message) in messages.iter().enumerate() {
            let increments: Vec<_> =
                message.iter().map(|(key, delta, at)| increment(key, *delta, *at)).collect();
            whole.count(&at(offset as i64), &increments).unwrap();
            parts.count(&at(offset as i64), &increments).unwrap();
            if flushes[offset] {
                taken.push(parts.take());
            }
        }
        taken.push(parts.take());
        let whole = whole.take();
        prop_assert_eq!(fingerprint(&taken), whole.sums.fingerprint());
        prop_assert_eq!(totals(&taken), totals([&whole]));
        prop_assert_eq!(taken.iter().map(|f| f.counted).sum::<u64>(), whole.counted);
        prop_assert_eq!(taken.iter().map(|f| f.increments).sum::<u64>(), whole.increments);
        prop_assert!(taken.windows(2).all(|pair| pair[0].to == pair[1].from));
    }
}

#[test]
fn an_increment_whose_id_was_seen_is_left_out() {
    let mut fold = Fold::new(Rules::default(), 0);
    fold.count(&at(0), &[once("a", 1), once("b", 10), once("a", 100)]).unwrap();
    fold.count(&at(1), &[once("b", 1000), once("c", 10_000), increment("k", 100_000, 0)]).unwrap();
    fold.count(&at(2), &[once("c", 1), once("a", 1)]).unwrap();
    let flush = fold.take();
    assert_eq!((flush.counted, flush.duplicate, flush.increments), (2, 1, 4));
    let by_namespace = BTreeMap::from([(String::from("ns"), 4)]);
    assert_eq!(flush.duplicates, Duplicates { batches: 0, increments: 4, by_namespace });
    assert_eq!(flush.sums.iter().map(|d| (d.sum, d.events)).collect::<Vec<_>>(), [(110_011, 4)]);
}

#[test]
fn a_batch_whose_id_was_seen_is_a_duplicate_whole() {
    let mut fold = Fold::new(Rules::default(), 0);
    fold.count(&batch(0, "x"), &[increment("k", 1, 0)]).unwrap();
    fold.count(&batch(1, "x"), &[increment("k", 2, 0), once("x", 4)]).unwrap();
    // The duplicate left the ids of its increments, and an increment's id is no batch's.
    fold.count(&at(2), &[once("x", 8)]).unwrap();
    fold.count(&batch(3, "y"), &[]).unwrap();
    let flush = fold.take();
    assert_eq!((flush.counted, flush.duplicate, flush.increments), (2, 2, 1));
    let by_namespace = BTreeMap::from([(String::from("ns"), 3)]);
    assert_eq!(flush.duplicates, Duplicates { batches: 1, increments: 1, by_namespace });
}

#[test]
fn a_message_that_may_not_be_counted_leaves_no_ids() {
    let mut fold = Fold::new(Rules::default(), 0);
    assert_eq!(
        fold.count(&at(0), &[once("a", 1), increment("", 1, 0)]),
        Err(Reject::NameOutOfRange)
    );
    fold.reject(0, Reject::NameOutOfRange, b"");
    assert_eq!(fold.count(&at(1), &[once("a", 1)]), Ok(CountedAs::New));
}

#[test]
fn an_id_counts_once_within_its_counter_and_an_empty_one_is_none() {
    let once_of =
        |namespace, key, id| Increment { namespace, id: Some(id), ..increment(key, 1, 0) };
    let messages = [
        vec![once_of("s", "requests", "e1"), once_of("s", "bytes", "e1")],
        vec![once_of("b", "requests", "e1")],
        vec![once_of("s", "bytes", "e1")],
        vec![once_of("s", "bytes", ""), once_of("s", "bytes", "")],
        vec![once_of("s", "bytes", "")],
    ];
    let counted = |ids_within| {
        let mut fold = Fold::new(Rules { ids_within, ..Rules::default() }, 0);
        for (offset, message) in (0..).zip(&messages) {
            // An empty id of a batch is none either; the first version took it for one.
            let empty = (ids_within == IdScope::Counter).then_some("");
            fold.count(&Envelope { batch_id: empty, ..at(offset) }, message).unwrap();
        }
        let flush = fold.take();
        (flush.counted, flush.duplicate, flush.increments, flush.duplicates.increments)
    };
    assert_eq!(counted(IdScope::Counter), (4, 1, 6, 1));
    assert_eq!(counted(IdScope::Partition), (2, 3, 2, 5));
}

#[test]
fn duplicates_are_told_of_few_namespaces_one_by_one() {
    let mut fold = Fold::new(Rules::default(), 0);
    let names: Vec<_> = (0..Duplicates::MAX_NAMESPACES + 20).map(|n| format!("n{n:03}")).collect();
    let increments: Vec<_> =
        names.iter().map(|namespace| Increment { namespace, ..once("a", 1) }).collect();
    fold.count(&at(0), &increments).unwrap();
    fold.count(&at(1), &increments).unwrap();
    let duplicates = fold.take().duplicates;
    assert_eq!(duplicates.by_namespace.len(), Duplicates::MAX_NAMESPACES + 1);
    assert_eq!((duplicates.by_namespace[""], duplicates.by_namespace["n007"]), (20, 1));
    assert_eq!(duplicates.increments, names.len() as u64);
}

#[test]
fn an_event_may_be_later_than_its_record_by_so_much_only() {
    let mut fold = Fold::new(Rules { max_future_s: 60, ..Rules::default() }, 0);
    let written = |offset| Envelope { timestamp_ms: Some(1_000_000), ..at(offset) };
    fold.count(&written(0), &[increment("k", 1, 1_060_000)]).unwrap();
    let late = [increment("k", 1, 1_060_001)];
    assert_eq!(fold.count(&written(1), &late), Err(Reject::FutureEventTime));
    fold.count(&at(1), &late).unwrap();
    let beyond = [increment("k", 1, i64::MAX)];
    assert_eq!(fold.count(&written(2), &beyond), Err(Reject::EventTimeOutOfRange));
}

#[test]
fn a_message_whose_deltas_could_outgrow_a_batch_is_too_large() {
    let mut fold = Fold::new(Rules::default(), 0);
    let names: Vec<_> = (0..8000).map(|n| format!("{n:02000}")).collect();
    let all: Vec<_> = names.iter().map(|name| increment(name, 1, 0)).collect();
    assert!(fold.has_room(&all[..3000]));
    assert_eq!(fold.count(&at(0), &all[..4000]), Err(Reject::TooLarge));
    fold.count(&at(0), &all[..3000]).unwrap();
    fold.count(&at(1), &all[3000..6000]).unwrap();
    assert!(fold.has_room(&all[6000..7000]) && !fold.has_room(&all[6000..]));
}

#[test]
fn memory_is_taken_as_it_is_needed_and_given_back() {
    let mut fold = Fold::new(rules(100_000, 10_000), 0);
    assert_eq!(fold.remembered_bytes(), 0);
    let ids: Vec<_> = (0..20_000).map(|n| n.to_string()).collect();
    for (offset, id) in ids.iter().enumerate() {
        fold.count(&at(offset as i64), &[once(id, 1)]).unwrap();
    }
    assert_eq!((fold.remembered_ids(), fold.remembered_offsets()), (10_000, 10_000));
    assert!(fold.remembered_bytes() <= 40 * 10_000, "{}", fold.remembered_bytes());
    fold.count(&at(200_000), &[once("last", 1)]).unwrap();
    assert_eq!((fold.remembered_ids(), fold.remembered_offsets()), (1, 1));
    assert!(fold.remembered_bytes() < 2000, "{}", fold.remembered_bytes());
}

/// A message of the model's log: ids and deltas of its increments, and its batch's id.
#[derive(Clone, Debug)]
struct Sent {
    gap: i64,
    batch: Option<String>,
    increments: Vec<(Option<String>, i64)>,
    /// Rejected because its schema was not known then.
    unread: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    let id = || prop::option::weighted(0.7, "[a-h]");
    let increments = prop::collection::vec((id(), 1i64..9), 0..4);
    let sent =
        (0i64..4, prop::option::weighted(0.2, "[a-e]"), increments, prop::bool::weighted(0.15));
    sent.prop_map(|(gap, batch, increments, unread)| Sent { gap, batch, increments, unread })
}

/// What counts, the naive way: from each id to where it was seen last.
#[derive(Default)]
struct Model {
    seen: BTreeMap<(bool, String), usize>,
    places: Vec<i64>,
    counted: u64,
    duplicate: u64,
    increments: u64,
    sum: i64,
}

impl Model {
    /// Whether `id` is among the last `max_ids` that were seen, and within the horizon; it is now.
    fn see(&mut self, rules: &Rules, offset: i64, id: (bool, &String)) -> bool {
        let id = (id.0, id.1.clone());
        let remembered = self.seen.get(&id).is_some_and(|&place| {
            let newer = self.seen.values().filter(|&&other| other > place).count();
            newer < rules.horizon.ids.get() as usize
                && self.places[place] >= offset - i64::from(rules.horizon.offsets)
        });
        self.seen.insert(id, self.places.len());
        self.places.push(offset);
        remembered
    }

    fn count(&mut self, rules: &Rules, offset: i64, sent: &Sent) {
        let mut new = Vec::new();
        for (id, delta) in &sent.increments {
            if id.as_ref().is_none_or(|id| !self.see(rules, offset, (false, id))) {
                new.push(*delta);
            }
        }
        let repeated_batch =
            sent.batch.as_ref().is_some_and(|id| self.see(rules, offset, (true, id)));
        if repeated_batch || (new.is_empty() && !sent.increments.is_empty()) {
            self.duplicate += 1;
        } else {
            self.counted += 1;
            self.increments += new.len() as u64;
            self.sum += new.iter().sum::<i64>();
        }
    }
}

fn increments(sent: &Sent) -> Vec<Increment<'_>> {
    sent.increments
        .iter()
        .map(|(id, delta)| Increment { id: id.as_deref(), ..increment("k", *delta, 0) })
        .collect()
}

proptest! {
    /// Wherever it is flushed, and wherever it is read again by its bookmark, the fold counts as
    /// the naive one does.
    #[test]
    fn what_counts_is_what_a_naive_memory_says(
        log in prop::collection::vec((sent(), 0u8..4), 0..120),
        offsets in 0u32..30,
        ids in 1u32..10,
    ) {
        let rules = rules(offsets, ids);
        let (mut fold, mut model) = (Fold::new(rules, 0), Model::default());
        let (mut counted, mut duplicate, mut added, mut sum) = (0, 0, 0, 0);
        let mut past: Vec<(i64, Sent)> = Vec::new();
        let mut next = 0;
        for (sent, then) in log {
            let offset = next + sent.gap;
            next = offset + 1;
            let envelope = Envelope { batch_id: sent.batch.as_deref(), ..at(offset) };
            if sent.unread {
                fold.reject(offset, Reject::UnknownSchema, UNREAD);
            } else {
                fold.count(&envelope, &increments(&sent)).unwrap();
                model.count(&rules, offset, &sent);
            }
            past.push((offset, sent));
            if then == 0 {
                let flush = fold.take();
                counted += flush.counted;
                duplicate += flush.duplicate;
                added += flush.increments;
                sum += flush.sums.iter().map(|delta| delta.sum).sum::<i64>();
                let bookmark: Bookmark = fold.bookmark().to_string().parse().unwrap();
                let mut again = Fold::resume(rules, flush.to, &bookmark);
                let from = bookmark.from.unwrap_or(flush.to);
                for (offset, sent) in past.iter().filter(|(offset, _)| *offset >= from) {
                    // By now the schema is known: only the bookmark tells that it was not.
                    if !again.was_unread(*offset, UNREAD) {
                        let envelope = Envelope { batch_id: sent.batch.as_deref(), ..at(*offset) };
                        again.remember(&envelope, &increments(sent));
                    }
                }
                prop_assert_eq!(again.remembered_ids(), fold.remembered_ids());
                prop_assert_eq!(again.bookmark(), bookmark);
                fold = again;
            }
        }
        let flush = fold.take();
        prop_assert_eq!(
            (counted + flush.counted, duplicate + flush.duplicate, added + flush.increments),
            (model.counted, model.duplicate, model.increments)
        );
        prop_assert_eq!(sum + flush.sums.iter().map(|delta| delta.sum).sum::<i64>(), model.sum);
    }
}

proptest! {
    /// Whatever the flushes were, and however large the numbers, a replay judges every message as
    /// it was judged, and comes to the same totals.
    #[test]
    fn a_replay_comes_to_the_same_wherever_it_is_flushed(
        messages in prop::collection::vec(
            prop::collection::vec(
                (prop::sample::select(vec![i64::MIN, i64::MAX, i64::MAX / 2, -1, 2]), "[a-c]{0,1}"),
                1..4,
            ),
            1..30,
        ),
        flushes in prop::collection::vec(any::<bool>(), 30),
        takes in prop::collection::vec(any::<bool>(), 30),
    ) {
        let mut counted = Fold::new(Rules::default(), 0);
        let mut replay = Fold::new(Rules::default(), 0);
        let (mut stored, mut replayed) = (Vec::new(), Vec::new());
        for (offset, message) in messages.iter().enumerate() {
            let increments: Vec<_> = message.iter().map(|(delta, id)| once(id, *delta)).collect();
            let envelope = at(offset as i64);
            let as_before = counted.count(&envelope, &increments);
            prop_assert_eq!(replay.count(&envelope, &increments), as_before);
            if flushes[offset] {
                stored.push(counted.take());
            }
            if takes[offset] {
                replayed.push(replay.take());
            }
        }
        stored.push(counted.take());
        replayed.push(replay.take());
        prop_assert_eq!(totals(&stored), totals(&replayed));
        let total = |flushes: &[Flush], of: fn(&Flush) -> u64| flushes.iter().map(of).sum::<u64>();
        for of in [
            |flush: &Flush| flush.counted,
            |flush: &Flush| flush.duplicate,
            |flush: &Flush| flush.increments,
        ] {
            prop_assert_eq!(total(&stored, of), total(&replayed, of));
        }
    }
}
