use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Item = (String, String, u32, i64);

/// The sums, done the ordinary way: where one is full, the counter gets another.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    /// Where the counter's last sum is.
    last: BTreeMap<(String, String, u32), usize>,
    sums: Vec<(String, String, u32, i64, i64)>,
}

impl Model {
    fn add(&mut self, (namespace, key, bucket, delta): &Item) {
        let counter = (namespace.clone(), key.clone(), *bucket);
        if let Some(at) = self.last.get(&counter) {
            let (.., sum, events) = &mut self.sums[*at];
            if let Some(fits) = sum.checked_add(*delta) {
                (*sum, *events) = (fits, *events + 1);
                return;
            }
        }
        self.sums.push((namespace.clone(), key.clone(), *bucket, *delta, 1));
        self.last.insert(counter, self.sums.len() - 1);
    }

    fn add_all(&mut self, items: &[Item]) {
        items.iter().for_each(|item| self.add(item));
    }

    fn deltas(&self) -> impl Iterator<Item = Delta<'_>> {
        self.sums.iter().map(|(namespace, key, bucket, sum, events)| Delta {
            namespace,
            key,
            bucket_s: *bucket,
            sum: *sum,
            events: *events,
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        self.deltas()
            .map(|d| Fingerprint::of_row(d.namespace, d.key, d.bucket_s, d.sum))
            .fold(Fingerprint::ZERO, |total, row| total + row)
    }
}

fn increment((namespace, key, _, delta): &Item) -> Increment<'_> {
    Increment { namespace, key, delta: *delta, at_ms: 0, id: None }
}

/// The real hashes.
const APART: u32 = u32::MAX;

/// Of each hash only the bits in `kept` are used, so that counters meet in one slot, or with one
/// hash.
fn with<T>(
    sums: &mut Sums,
    items: &[Item],
    kept: u32,
    add: impl Fn(&mut Sums, &[Increment<'_>], &[HashedCell]) -> T,
) -> T {
    let increments: Vec<_> = items.iter().map(increment).collect();
    let cell = |(namespace, key, bucket, _): &Item| {
        let cell = sums.hash_cell(namespace, key, *bucket);
        HashedCell { hash: cell.hash & kept, ..cell }
    };
    let cells: Vec<_> = items.iter().map(cell).collect();
    add(sums, &increments, &cells)
}

fn item(key: &str, delta: i64) -> Item {
    ("ns".into(), key.into(), 60, delta)
}

fn check(sums: &Sums, model: &Model) {
    let deltas: Vec<_> = sums.iter().collect();
    assert_eq!(deltas, model.deltas().collect::<Vec<_>>());
    assert_eq!(
        (sums.len(), sums.is_empty(), sums.iter().len()),
        (deltas.len(), deltas.is_empty(), deltas.len())
    );
    assert_eq!(sums.fingerprint(), model.fingerprint());
    let exact = deltas.iter().map(Delta::encoded_bytes).sum::<usize>();
    let longest = |delta: &Delta<'_>| delta.namespace.len() + delta.key.len() + NUMBERS_BYTES;
    let bounds = exact..=deltas.iter().map(longest).sum();
    assert!(
        bounds.contains(&sums.encoded_bytes()),
        "{} is not in {bounds:?}",
        sums.encoded_bytes()
    );
    assert_eq!(sums.increments, deltas.iter().map(|delta| delta.events as u64).sum::<u64>());
}

/// Names of every length that is compared in its own way, many of them alike but for one byte, not
/// all of them ASCII.
fn name() -> impl Strategy<Value = String> {
    let alike = (1usize..38, any::<prop::sample::Index>()).prop_map(|(len, at)| {
        let mut name = vec![b'x'; len];
        name[at.index(len)] = b'y';
        String::from_utf8(name).unwrap()
    });
    prop_oneof![3 => "[ab]{0,2}", 3 => alike, 1 => "[é€𐍈]{0,9}"]
}

fn delta() -> impl Strategy<Value = i64> {
    prop_oneof![20 => -5i64..5, 1 => Just(i64::MAX), 1 => Just(i64::MIN), 1 => any::<i64>()]
}

#[derive(Clone, Debug)]
enum Step {
    AddAll(Vec<Item>),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let items = || prop::collection::vec((name(), name(), 0u32..3, delta()), 0..70);
    prop_oneof![
        16 => items().prop_map(Step::AddAll),
        1 => Just(Step::Clear),
    ]
}

proptest! {
    #[test]
    fn sums_are_those_of_an_ordinary_map(
        steps in prop::collection::vec(step(), 0..10),
        kept in prop_oneof![Just(APART), Just(0), Just(3), Just(0x8000_03ff)],
    ) {
        let (mut sums, mut model) = (Sums::new(), Model::default());
        for step in &steps {
            match step {
                Step::AddAll(items) => {
                    with(&mut sums, items, kept, Sums::add_all);
                    model.add_all(items);
                }
                Step::Clear => {
                    sums.clear();
                    model = Model::default();
                }
            }
            check(&sums, &model);
        }
    }

    /// The table grows several times over, between messages and within one; the last sum is more
    /// than 64 bits hold.
    #[test]
    fn growth_keeps_every_entry(seed: u64, messages in prop::collection::vec(1usize..1500, 1..4)) {
        let (mut sums, mut model) = (Sums::new(), Model::default());
        let mut next = seed;
        let mut draw = || {
            next = next
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            item(&format!("user:{}", (next >> 33) % 5000), 1)
        };
        for len in messages {
            let items: Vec<_> = (0..len).map(|_| draw()).collect();
            let large = [item("max", i64::MAX), item("max", 1)];
            let items: Vec<_> = items.into_iter().chain(large).collect();
            with(&mut sums, &items, APART, Sums::add_all);
            model.add_all(&items);
            check(&sums, &model);
        }
    }
}

proptest! {
    /// What is said to have room has it, once it is added; and where numbers are small, little room
    /// is given away.
    #[test]
    fn room_is_there_where_it_is_said_to_be(
        messages in prop::collection::vec(
            prop::collection::vec((name(), name(), 0u32..3, delta()), 1..30),
            1..6,
        ),
        slack in 0usize..400,
    ) {
        let mut sums = Sums::new();
        for items in &messages {
            let increments: Vec<_> = items.iter().map(increment).collect();
            let limit = sums.encoded_bytes() + slack;
            let has_room = sums.has_room(&increments, limit);
            with(&mut sums, items, APART, Sums::add_all);
            if has_room {
                prop_assert!(sums.encoded_bytes() <= limit, "{} of {limit}", sums.encoded_bytes());
            }
        }
    }
}

#[test]
fn small_numbers_are_not_taken_for_large_ones() {
    let now = 1_780_000_020;
    let items: Vec<Item> =
        (0..20_000).map(|i| (String::from("ns"), format!("key-{i}"), now, 1 + i % 50)).collect();
    let mut sums = Sums::new();
    with(&mut sums, &items, APART, Sums::add_all);
    let exact: usize = sums.iter().map(|delta| delta.encoded_bytes()).sum();
    assert!(
        sums.encoded_bytes() <= exact + 3 * items.len(),
        "{} for {exact}",
        sums.encoded_bytes()
    );
}

#[test]
fn counters_with_one_hash_are_kept_apart() {
    let names = (1..38).flat_map(|len| (0..len).map(move |at| (len, at))).map(|(len, at)| {
        let mut name = vec![b'x'; len];
        name[at] = b'y';
        String::from_utf8(name).unwrap()
    });
    let names =
        names.flat_map(|name| [(name.clone(), "k".to_owned(), 0), ("n".to_owned(), name, 60)]);
    let where_they_end =
        [("ab", "c", 0), ("a", "bc", 0), ("ab", "c", 60)].map(|(n, k, b)| (n.into(), k.into(), b));
    let items: Vec<Item> =
        names.chain(where_they_end).map(|(n, k, bucket)| (n, k, bucket, 1)).collect();
    let (mut sums, mut model) = (Sums::new(), Model::default());
    for _ in 0..2 {
        with(&mut sums, &items, 0, Sums::add_all);
        model.add_all(&items);
    }
    assert_eq!(sums.len(), items.len());
    check(&sums, &model);
}

#[test]
fn names_of_the_greatest_length_come_back() {
    let long = "x".repeat(usize::from(u16::MAX));
    let items = [(long.clone(), long.clone(), u32::MAX, -1), (long, "é".repeat(2048), 0, i64::MIN)];
    let (mut sums, mut model) = (Sums::new(), Model::default());
    with(&mut sums, &items, APART, Sums::add_all);
    model.add_all(&items);
    check(&sums, &model);
}

#[test]
fn memory_is_kept_for_the_next_flush_and_let_go_where_it_is_not_used() {
    let items: Vec<_> = (0..20_000).map(|i| item(&i.to_string(), 1)).collect();
    let mut sums = Sums::new();
    with(&mut sums, &items, APART, Sums::add_all);
    let full = sums.memory_bytes();
    sums.clear();
    assert_eq!(sums.memory_bytes(), full);
    for _ in 0..20 {
        with(&mut sums, &items[..1], APART, Sums::add_all);
        sums.clear();
    }
    assert!(
        sums.memory_bytes() <= Sums::new().memory_bytes() + 256,
        "{} of {full}",
        sums.memory_bytes()
    );
}

#[test]
fn a_sum_beyond_64_bits_goes_on_in_another_delta() {
    let mut sums = Sums::new();
    let items = [item("a", i64::MAX), item("b", 1), item("a", 5), item("a", -7), item("a", 1)];
    with(&mut sums, &items, APART, Sums::add_all);
    let deltas: Vec<_> = sums.iter().map(|d| (d.key.to_owned(), d.sum, d.events)).collect();
    let expected = [("a", i64::MAX, 1), ("b", 1, 1), ("a", -1, 3)];
    assert_eq!(deltas, expected.map(|(key, sum, events)| (key.to_owned(), sum, events)));
}
