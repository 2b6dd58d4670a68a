use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

/// Ids of which many belong in the same few slots, and have the same tag.
fn id() -> impl Strategy<Value = Id> {
    (0u128..4, 0u128..40).prop_map(|(slot, number)| Id(slot | number << 40))
}

#[derive(Clone, Copy, Debug)]
enum Step {
    See(Id),
    Unread { schema: u32 },
}

fn step() -> impl Strategy<Value = (i64, Step)> {
    let step = prop_oneof![
        9 => id().prop_map(Step::See),
        1 => (0..3u32).prop_map(|schema| Step::Unread { schema }),
    ];
    (prop_oneof![3 => Just(0), 3 => Just(1), 1 => 2i64..40], step)
}

/// The definition: of the distinct ids in [offset − horizon, offset), those seen last, by when that
/// was.
fn naive(horizon: Horizon, seen: &[(Id, i64)], offset: i64) -> Vec<(Id, i64)> {
    let mut remembered: Vec<(Id, i64)> = Vec::new();
    for &(id, at) in seen.iter().rev() {
        let is_new = remembered.iter().all(|(other, _)| *other != id);
        if is_new
            && at >= offset - i64::from(horizon.offsets)
            && remembered.len() < horizon.ids.get() as usize
        {
            remembered.push((id, at));
        }
    }
    remembered.reverse();
    remembered
}

proptest! {
    #[test]
    fn what_is_remembered_is_what_the_definition_says(
        steps in prop::collection::vec(step(), 0..400),
        offsets in 0u32..60,
        ids in 1u32..150,
    ) {
        let horizon = Horizon { offsets, ids: NonZeroU32::new(ids).unwrap() };
        let mut memory = IdMemory::new(horizon);
        let (mut seen, mut offset) = (Vec::new(), 0);
        for (gap, step) in steps {
            offset += gap;
            match step {
                Step::See(id) => {
                    let before = naive(horizon, &seen, offset);
                    let was_there = before.iter().any(|(other, _)| *other == id);
                    memory.advance(offset);
                    prop_assert_eq!(memory.see(id, offset), was_there);
                    seen.push((id, offset));
                }
                Step::Unread { schema } => memory.note_unread(schema, offset),
            }
            prop_assert_eq!(memory.ids_by_age(), naive(horizon, &seen, offset));
            prop_assert_eq!(memory.ids(), memory.ids_by_age().len());
        }
    }

    /// More ids than the first tables hold, with real fingerprints.
    #[test]
    fn growth_keeps_every_id(ids in 1u32..5000, rounds in 1usize..4, kept in 1u32..6000) {
        let horizon = Horizon { offsets: u32::MAX, ids: NonZeroU32::new(kept).unwrap() };
        let mut memory = IdMemory::new(horizon);
        let names: Vec<_> = (0..ids).map(|number| Id::of_batch(&number.to_string())).collect();
        for round in 0..rounds {
            for (offset, id) in (i64::from(ids) * round as i64..).zip(&names) {
                prop_assert_eq!(memory.see(*id, offset), round > 0 && kept >= ids);
            }
        }
        let newest = &names[names.len() - memory.ids()..];
        prop_assert!(memory.ids_by_age().iter().map(|(id, _)| id).eq(newest));
    }
}

#[test]
fn a_run_of_unread_messages_ends_where_its_schema_is_read() {
    let mut memory = IdMemory::new(Horizon::MILLION);
    memory.see(Id::of_batch("a"), 0);
    memory.note_unread(7, 1);
    memory.note_unread(7, 3);
    memory.note_read(7, 4);
    memory.note_unread(7, 5);
    assert_eq!(memory.bookmark(6).to_string(), "ids=0 unread=7:1-3,7:5-5");
    assert!([1, 2, 3, 5].iter().all(|offset| memory.is_unread(7, *offset)));
    assert!(!memory.is_unread(7, 4) && !memory.is_unread(8, 1));
}

#[test]
fn unread_messages_matter_only_while_older_ids_are_remembered() {
    let mut memory = IdMemory::new(Horizon { offsets: 10, ..Horizon::MILLION });
    memory.note_unread(7, 0);
    assert_eq!(memory.bookmark(1).to_string(), "ids=none");
    memory.see(Id::of_batch("a"), 1);
    memory.note_unread(7, 2);
    assert_eq!(memory.bookmark(3).to_string(), "ids=1 unread=7:2-2");
    assert_eq!(memory.bookmark(12).to_string(), "ids=none");
}

#[test]
fn more_runs_than_a_bookmark_holds_cost_the_ids_before_the_first_of_them() {
    let mut memory = IdMemory::new(Horizon::MILLION);
    memory.see(Id::of_batch("old"), 0);
    memory.note_unread(0, 1);
    memory.see(Id::of_batch("new"), 2);
    for schema in 1..bookmark::MAX_GAPS as u32 {
        memory.note_unread(schema, 2 + i64::from(schema));
    }
    assert_eq!(memory.oldest(), Some(0));
    memory.note_unread(1000, 1000);
    assert_eq!(memory.oldest(), Some(2));
    let bookmark = memory.bookmark(1001);
    assert_eq!((bookmark.from, bookmark.unread.len()), (Some(2), bookmark::MAX_GAPS));
}

#[test]
fn an_id_is_of_its_counter_and_an_empty_one_is_none() {
    let increment = |namespace, key, id| Increment { namespace, key, delta: 1, at_ms: 0, id };
    let of = |increment: Increment<'_>, within| {
        Id::of_increment(&increment, within, &mut Vec::from(*b"left over"))
    };
    let counter = |namespace, key, id| of(increment(namespace, key, Some(id)), IdScope::Counter);
    assert_eq!(counter("n", "k", "1"), counter("n", "k", "1"));
    let apart = [
        counter("n", "k", "1"),
        counter("n", "k", "2"),
        counter("n", "k2", "1"),
        counter("m", "k", "1"),
        counter("nk", "", "1"),
        counter("", "nk", "1"),
        counter("n", "", "k1"),
        of(increment("n", "k", Some("1")), IdScope::Partition),
        Some(Id::of_batch("1")),
    ];
    for (at, id) in apart.iter().enumerate() {
        assert!(id.is_some() && !apart[at + 1..].contains(id), "{at}");
    }
    assert_eq!(counter("n", "k", ""), None);
    assert_eq!(of(increment("n", "k", None), IdScope::Counter), None);
    // As the first version had it.
    assert!(of(increment("n", "k", Some("")), IdScope::Partition).is_some());
    let partition = |key| of(increment("n", key, Some("1")), IdScope::Partition);
    assert_eq!(partition("k"), partition("other"));
}
