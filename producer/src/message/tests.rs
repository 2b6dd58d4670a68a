use std::collections::HashMap;

use axum::http::HeaderValue;
use proptest::prelude::*;
use tally_schemas::{Plan, avsc};

use super::*;
use crate::problem::{Code, Problem};

const IDS: SchemaIds = SchemaIds { increment: 7, batch: 8 };
const UNIQUE: &str = "unique";
const PARTITIONS: NonZeroU32 = NonZeroU32::new(4).unwrap();

fn item(key: &'static str, id: Option<&'static str>) -> Item<'static> {
    Item { namespace: "n".into(), key: key.into(), delta: 2, at_ms: 5, id: id.map(Into::into) }
}

fn parsed(shape: Shape, id: Option<&'static str>, items: Vec<Item<'static>>) -> Parsed<'static> {
    Parsed { shape, id, items }
}

fn messages(parsed: &Parsed<'_>, idempotency_key: Option<&str>) -> Result<Messages, Error> {
    Messages::new(parsed, idempotency_key, UNIQUE, IDS, PARTITIONS)
}

/// The only message.
fn one(parsed: &Parsed<'_>, idempotency_key: Option<&str>) -> (Message, Recognised) {
    let Messages { mut list, recognised } = messages(parsed, idempotency_key).unwrap();
    assert_eq!(list.len(), 1, "{list:?}");
    (list.remove(0), recognised)
}

/// What a reader of the log makes of the message: its schema, the batch's id, the increments.
fn read(message: &Message) -> (u32, Option<&str>, Vec<Increment<'_>>) {
    let (schema_id, body) = wire::split(&message.payload).unwrap();
    let schema = if schema_id == IDS.batch { avsc::INCREMENT_BATCH } else { avsc::INCREMENT };
    let mut increments = Vec::new();
    let read = Plan::new(schema).unwrap().decode_into(body, &mut increments).unwrap();
    assert_eq!(increments.len(), message.increments);
    (schema_id, read.id, increments)
}

fn of_counter(key: &str, id: &str) -> Destination {
    Destination::Partition(Partitioner::new(PARTITIONS).partition("n", key, id))
}

/// Ids with which the counter `k` goes to two partitions.
fn two_ids() -> (&'static str, &'static str) {
    let first = of_counter("k", "a");
    let other = ["b", "c", "d", "e", "f", "g"].into_iter().find(|id| of_counter("k", id) != first);
    ("a", other.expect("four partitions take one each"))
}

#[test]
fn a_single_increment_is_keyed_by_its_counter() {
    let single = parsed(Shape::Single, None, vec![item("k", None)]);
    let (message, recognised) = one(&single, None);
    assert_eq!(message.destination, Destination::Key(b"n\0k".to_vec()));
    assert_eq!(recognised, Recognised::Nothing);
    let sent = Increment { id: Some(UNIQUE), ..single.items[0].increment() };
    assert_eq!(read(&message), (IDS.increment, None, vec![sent]));
}

#[test]
fn an_increment_with_an_id_goes_where_its_counter_and_id_say() {
    let single = parsed(Shape::Single, None, vec![item("k", Some("own"))]);
    let (message, recognised) = one(&single, None);
    assert_eq!(message.destination, of_counter("k", "own"));
    assert_eq!(recognised, Recognised::Whole);
    assert_eq!(read(&message), (IDS.increment, None, vec![single.items[0].increment()]));

    let batch = parsed(Shape::Batch, None, vec![item("k", Some("own"))]);
    let (message, _) = one(&batch, None);
    assert_eq!(message.destination, of_counter("k", "own"));
    assert_eq!(read(&message), (IDS.batch, None, vec![batch.items[0].increment()]));
}

#[test]
fn a_batch_without_ids_goes_anywhere_in_one_piece() {
    let plain = parsed(Shape::Batch, None, vec![item("a", None), item("b", None)]);
    let (message, recognised) = one(&plain, None);
    assert_eq!((&message.destination, recognised), (&Destination::Any, Recognised::Nothing));
    let (schema_id, id, increments) = read(&message);
    assert_eq!((schema_id, id, increments.len()), (IDS.batch, Some(UNIQUE), 2));

    let (message, recognised) = one(&plain, Some("once"));
    assert_eq!(message.destination, Destination::Key(b"once".to_vec()));
    assert_eq!(recognised, Recognised::Whole);
    let (schema_id, id, increments) = read(&message);
    assert_eq!((schema_id, id, increments.len()), (IDS.batch, Some("once"), 2));
}

#[test]
fn ids_of_two_partitions_make_two_messages_and_the_others_travel_with_the_first_id() {
    let (a, b) = two_ids();
    let items = vec![item("bare", None), item("k", Some(a)), item("k", Some(b)), item("k", None)];
    let mixed = parsed(Shape::Batch, None, items);
    let sent = messages(&mixed, None).unwrap();
    assert_eq!(sent.recognised, Recognised::AllBut { bare: 2 });
    assert_eq!((sent.list.len(), sent.increments()), (2, 4));
    for message in &sent.list {
        let expected = if message.destination == of_counter("k", a) {
            (IDS.batch, Some(UNIQUE), vec![&mixed.items[0], &mixed.items[1], &mixed.items[3]])
        } else {
            assert_eq!(message.destination, of_counter("k", b));
            (IDS.batch, None, vec![&mixed.items[2]])
        };
        let (schema_id, id, items) = expected;
        let increments = items.into_iter().map(Item::increment).collect();
        assert_eq!(read(message), (schema_id, id, increments));
    }
}

#[test]
fn each_message_of_a_request_with_a_key_is_a_batch_of_that_id() {
    let single = parsed(Shape::Single, None, vec![item("k", Some("own"))]);
    let (message, _) = one(&single, Some("once"));
    assert_eq!(message.destination, of_counter("k", "own"));
    let increments = vec![single.items[0].increment()];
    assert_eq!(read(&message), (IDS.batch, Some("once"), increments));

    let (a, b) = two_ids();
    let items = vec![item("k", Some(a)), item("k", None), item("k", Some(b))];
    let named = parsed(Shape::Batch, Some("batch"), items);
    for header in [None, Some("batch")] {
        let sent = messages(&named, header).unwrap();
        assert_eq!((sent.list.len(), sent.recognised), (2, Recognised::Whole));
        assert!(sent.list.iter().all(|message| read(message).1 == Some("batch")));
        assert_eq!(messages(&named, header).unwrap(), sent, "sent again, it is split the same way");
    }
    let problem = Problem::from(messages(&named, Some("another")).unwrap_err());
    assert_eq!(problem.code, Code::InvalidIdempotencyKey);
}

#[test]
fn what_the_fold_would_refuse_as_too_large_is_not_sent() {
    let long: &'static str = "x".repeat(4000).leak();
    let many = parsed(Shape::Batch, None, (0..2000).map(|_| item(long, None)).collect());
    let problem = Problem::from(messages(&many, None).unwrap_err());
    assert_eq!(problem.code, Code::MessageTooLarge);
}

#[test]
fn a_request_of_which_the_topic_would_refuse_a_message_is_not_sent() {
    let message = |destination, payload_bytes| Message {
        destination,
        payload: vec![0; payload_bytes],
        increments: 3,
    };
    let of = |list| Messages { list, recognised: Recognised::Whole };
    let keyed = of(vec![message(Destination::Key(vec![0; 100]), 800)]);
    keyed.check_size(1028).unwrap();
    let split = of(vec![
        message(Destination::Partition(0), 1),
        message(Destination::Partition(1), 900),
        message(Destination::Partition(2), 1),
    ]);
    split.check_size(1028).unwrap();
    for messages in [keyed, split] {
        let problem = Problem::from(messages.check_size(1027).unwrap_err());
        assert_eq!(problem.code, Code::MessageTooLarge);
        let detail = &problem.detail;
        assert!(detail.ends_with("1028 bytes; the topic's max.message.bytes is 1027"), "{detail}");
    }
}

#[test]
fn an_idempotency_key_may_be_quoted() {
    let of = |values: &[&'static [u8]]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
        }
        idempotency_key(&headers)
            .map(|id| id.map(str::to_owned))
            .map_err(|error| Problem::from(Error::Key(error)).code)
    };
    assert_eq!(of(&[]), Ok(None));
    assert_eq!(of(&[b"a-1"]), Ok(Some("a-1".into())));
    assert_eq!(of(&[b"\"a-1\""]), Ok(Some("a-1".into())));
    for refused in [&[&b""[..]][..], &[b"\"\""], &[b"a", b"a"], &[b"\xe4"]] {
        assert_eq!(of(refused), Err(Code::InvalidIdempotencyKey), "{refused:?}");
    }
}

/// Few names, so that ids and counters meet again, some of which would be equal if they were only
/// put one after the other.
fn any_item() -> impl Strategy<Value = Item<'static>> {
    let name = "[ab:1\\x00]{1,2}";
    (name, name, prop::option::weighted(0.8, name), 0..100i64).prop_map(
        |(namespace, key, id, delta)| Item {
            namespace: namespace.into(),
            key: key.into(),
            delta,
            at_ms: 5,
            id: id.map(Into::into),
        },
    )
}

/// Cuts the increments into requests of these lengths, the last one of what is left.
fn requests<'a>(items: &[Item<'a>], lengths: &[usize]) -> Vec<Vec<Item<'a>>> {
    let (mut rest, mut requests) = (items.iter().map(copy).collect::<Vec<_>>(), Vec::new());
    for length in lengths {
        let after = rest.split_off(*length.min(&rest.len()));
        requests.push(std::mem::replace(&mut rest, after));
    }
    requests.push(rest);
    requests.retain(|request| !request.is_empty());
    requests
}

fn copy<'a>(item: &Item<'a>) -> Item<'a> {
    Item {
        namespace: item.namespace.clone(),
        key: item.key.clone(),
        delta: item.delta,
        at_ms: item.at_ms,
        id: item.id.clone(),
    }
}

proptest! {
    /// A client that sends increments again may group them in any way, and each request may have an
    /// Idempotency-Key or not: what is to be recognised comes to the partition that remembers it.
    #[test]
    fn an_id_of_a_counter_comes_to_one_partition_however_requests_are_cut(
        items in prop::collection::vec(any_item(), 1..20),
        cuts in prop::array::uniform2(prop::collection::vec(1..6usize, 0..8)),
        keys: [bool; 2],
        partitions in 1..40u32,
    ) {
        let partitions = NonZeroU32::new(partitions).unwrap();
        let mut seen: HashMap<(String, String, String), i32> = HashMap::new();
        for (cut, has_key) in cuts.iter().zip(keys) {
            for items in requests(&items, cut) {
                let shape = if items.len() == 1 { Shape::Single } else { Shape::Batch };
                let request = Parsed { shape, id: None, items };
                let key = has_key.then_some("once");
                let messages = Messages::new(&request, key, UNIQUE, IDS, partitions).unwrap();
                let mut arrived: Vec<Increment<'_>> = Vec::new();
                for message in &messages.list {
                    let (_, batch_id, increments) = read(message);
                    if has_key {
                        prop_assert_eq!(batch_id, key);
                    }
                    for increment in increments {
                        let id = increment.id.filter(|id| *id != UNIQUE);
                        if let Some(id) = id {
                            let Destination::Partition(partition) = message.destination else {
                                panic!("{increment:?} goes to {:?}", message.destination);
                            };
                            prop_assert!(partition.cast_unsigned() < partitions.get());
                            let of = [increment.namespace, increment.key, id].map(str::to_owned);
                            let [namespace, key, id] = of;
                            let first = *seen.entry((namespace, key, id)).or_insert(partition);
                            prop_assert_eq!(first, partition);
                        }
                        arrived.push(Increment { id, ..increment });
                    }
                }
                let mut sent: Vec<_> = request.items.iter().map(Item::increment).collect();
                let order = |a: &Increment<'_>, b: &Increment<'_>| {
                    let of = |i: &Increment<'_>| format!("{i:?}");
                    of(a).cmp(&of(b))
                };
                sent.sort_by(order);
                arrived.sort_by(order);
                prop_assert_eq!(arrived, sent, "each increment is in one of the messages");
                prop_assert_eq!(messages.increments(), request.items.len());
            }
        }
    }
}
