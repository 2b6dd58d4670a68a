//! From a body's increments to the one message of the log that carries them.

use axum::http::HeaderMap;
use tally_counts::{NameError, check_name, check_size};
use tally_schemas::{BatchEncoder, Increment, encode, wire};

use crate::body::{Item, Parsed, Shape};

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What a message has besides key and payload, at most: the headers of its record batch and of its
/// record.
const FRAME_BYTES: usize = 128;

/// Why a body does not become a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("it is {header:?}, but the batch's own id is {own:?}")]
    OtherId { header: String, own: String },
    #[error("its {increments} increments could be more than one flush may hold")]
    TooManyDeltas { increments: usize },
    #[error(
        "{increments} increments come to a message of {bytes} bytes; \
         the topic's max.message.bytes is {max_bytes}"
    )]
    TooLong { increments: usize, bytes: usize, max_bytes: usize },
}

/// Why an Idempotency-Key cannot be a batch's id.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("it is given more than once")]
    Repeated,
    #[error("it must be visible ASCII")]
    NotAscii,
    #[error(transparent)]
    Length(NameError),
}

/// The registry's ids of the schemas that messages are written by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SchemaIds {
    pub(crate) increment: u32,
    pub(crate) batch: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Messages with equal keys go to the same partition; without one, to any.
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
    pub(crate) increments: usize,
}

impl Message {
    /// Writes the increments: a single one as `tally.Increment`, many as `tally.IncrementBatch`.
    ///
    /// A request with an Idempotency-Key is a batch, however few its increments are: the id that
    /// makes it count once is the batch's. Increments without any id get `unique`, as their
    /// batch's: the Kafka client may append a message twice when it has lost the answer.
    pub(crate) fn new(
        parsed: &Parsed<'_>,
        idempotency_key: Option<&str>,
        unique: &str,
        ids: SchemaIds,
    ) -> Result<Message, Error> {
        let id = match (idempotency_key, parsed.id) {
            (Some(header), Some(own)) if header != own => {
                return Err(Error::OtherId { header: header.to_owned(), own: own.to_owned() });
            }
            (header, own) => header.or(own),
        };
        if check_size(parsed.items.iter().map(Item::increment)).is_err() {
            return Err(Error::TooManyDeltas { increments: parsed.items.len() });
        }
        let key = key(parsed, id);
        let mut payload = Vec::new();
        match (&parsed.items[..], parsed.shape, id) {
            ([item], Shape::Single, None) => {
                payload.extend_from_slice(&wire::prefix(ids.increment));
                let increment = item.increment();
                encode::increment(
                    &mut payload,
                    &Increment { id: increment.id.or(Some(unique)), ..increment },
                );
                Ok(Message { key, payload, increments: 1 })
            }
            (items, ..) => {
                payload.extend_from_slice(&wire::prefix(ids.batch));
                let mut batch = BatchEncoder::new();
                items.iter().for_each(|item| batch.push(&item.increment()));
                let increments = batch.count();
                let is_bare = items.iter().any(|item| item.id.is_none());
                batch.finish(&mut payload, id.or(is_bare.then_some(unique)));
                Ok(Message { key, payload, increments })
            }
        }
    }

    /// Refuses what the topic, whose messages may have `max_bytes`, would refuse.
    pub(crate) fn check_size(&self, max_bytes: usize) -> Result<(), Error> {
        let bytes = self.payload.len() + self.key.as_ref().map_or(0, Vec::len) + FRAME_BYTES;
        if bytes > max_bytes {
            return Err(Error::TooLong { increments: self.increments, bytes, max_bytes });
        }
        Ok(())
    }
}

/// What is meant to count once goes to one partition however often it is sent: the key is the
/// request's id, or else the first id of an increment in it. A single increment without one is
/// keyed by its counter.
fn key(parsed: &Parsed<'_>, id: Option<&str>) -> Option<Vec<u8>> {
    let first_id = || parsed.items.iter().find_map(|item| item.id.as_deref());
    match (id.or_else(first_id), &parsed.items[..], parsed.shape) {
        (Some(id), ..) => Some(id.into()),
        (None, [item], Shape::Single) => {
            Some([item.namespace.as_bytes(), item.key.as_bytes()].join(&b'\0'))
        }
        (None, ..) => None,
    }
}

/// The request's id: the header's value, with or without the quotes of a structured field.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, KeyError> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = given.next() else {
        return Ok(None);
    };
    if given.next().is_some() {
        return Err(KeyError::Repeated);
    }
    let text = value.to_str().map_err(|_| KeyError::NotAscii)?;
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let id = quoted.unwrap_or(text);
    check_name(id).map_err(KeyError::Length)?;
    Ok(Some(id))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use tally_schemas::{Plan, avsc};

    use super::*;
    use crate::problem::{Code, Problem};

    const IDS: SchemaIds = SchemaIds { increment: 7, batch: 8 };
    const UNIQUE: &str = "unique";

    fn item(key: &'static str, id: Option<&'static str>) -> Item<'static> {
        Item { namespace: "n".into(), key: key.into(), delta: 2, at_ms: 5, id: id.map(Into::into) }
    }

    fn parsed(
        shape: Shape,
        id: Option<&'static str>,
        items: Vec<Item<'static>>,
    ) -> Parsed<'static> {
        Parsed { shape, id, items }
    }

    /// What a reader of the log makes of the message: the batch's id and the increments.
    fn read<'a>(
        message: &'a Message,
        schema: &str,
        schema_id: u32,
    ) -> (Option<&'a str>, Vec<Increment<'a>>) {
        let (id, body) = wire::split(&message.payload).unwrap();
        assert_eq!(id, schema_id);
        let mut increments = Vec::new();
        let read = Plan::new(schema).unwrap().decode_into(body, &mut increments).unwrap();
        (read.id, increments)
    }

    #[test]
    fn a_single_increment_is_keyed_by_its_counter() {
        let one = parsed(Shape::Single, None, vec![item("k", None)]);
        let message = Message::new(&one, None, UNIQUE, IDS).unwrap();
        assert_eq!((message.key.as_deref(), message.increments), (Some(&b"n\0k"[..]), 1));
        let sent = Increment { id: Some(UNIQUE), ..one.items[0].increment() };
        assert_eq!(read(&message, avsc::INCREMENT, 7), (None, vec![sent]));
    }

    #[test]
    fn a_single_increment_with_an_id_is_keyed_by_it() {
        let one = parsed(Shape::Single, None, vec![item("k", Some("own"))]);
        let message = Message::new(&one, None, UNIQUE, IDS).unwrap();
        assert_eq!(message.key.as_deref(), Some(&b"own"[..]));
        assert_eq!(read(&message, avsc::INCREMENT, 7), (None, vec![one.items[0].increment()]));
    }

    #[test]
    fn what_the_fold_would_refuse_as_too_large_is_not_sent() {
        let long: &'static str = "x".repeat(4000).leak();
        let many = parsed(Shape::Batch, None, (0..2000).map(|_| item(long, None)).collect());
        let problem = Problem::from(Message::new(&many, None, UNIQUE, IDS).unwrap_err());
        assert_eq!(problem.code, Code::MessageTooLarge);
    }

    #[test]
    fn a_request_with_a_key_is_a_batch_of_that_id() {
        let one = parsed(Shape::Single, None, vec![item("k", Some("own"))]);
        let message = Message::new(&one, Some("once"), UNIQUE, IDS).unwrap();
        assert_eq!(message.key.as_deref(), Some(&b"once"[..]));
        assert_eq!(
            read(&message, avsc::INCREMENT_BATCH, 8),
            (Some("once"), vec![one.items[0].increment()])
        );
    }

    #[test]
    fn a_batch_goes_anywhere_unless_it_is_to_count_once() {
        let plain = parsed(Shape::Batch, None, vec![item("a", None), item("b", None)]);
        let message = Message::new(&plain, None, UNIQUE, IDS).unwrap();
        assert_eq!((message.key.as_deref(), message.increments), (None, 2));
        let (id, increments) = read(&message, avsc::INCREMENT_BATCH, 8);
        assert_eq!((id, increments.len()), (Some(UNIQUE), 2));

        let named = parsed(Shape::Batch, Some("batch"), vec![item("a", Some("first"))]);
        let message = Message::new(&named, Some("batch"), UNIQUE, IDS).unwrap();
        assert_eq!(message.key.as_deref(), Some(&b"batch"[..]));
        assert_eq!(read(&message, avsc::INCREMENT_BATCH, 8).0, Some("batch"));
        let problem =
            Problem::from(Message::new(&named, Some("another"), UNIQUE, IDS).unwrap_err());
        assert_eq!(problem.code, Code::InvalidIdempotencyKey);

        let item_ids = parsed(Shape::Batch, None, vec![item("a", None), item("b", Some("second"))]);
        assert_eq!(
            Message::new(&item_ids, None, UNIQUE, IDS).unwrap().key.as_deref(),
            Some(&b"second"[..])
        );
        let item_ids =
            parsed(Shape::Batch, None, vec![item("a", Some("first")), item("b", Some("second"))]);
        let message = Message::new(&item_ids, None, UNIQUE, IDS).unwrap();
        assert_eq!(read(&message, avsc::INCREMENT_BATCH, 8).0, None);
    }

    #[test]
    fn a_message_that_the_topic_would_refuse_is_not_sent() {
        let message = Message { key: Some(vec![0; 100]), payload: vec![0; 800], increments: 3 };
        message.check_size(1028).unwrap();
        let problem = Problem::from(message.check_size(1027).unwrap_err());
        assert_eq!(problem.code, Code::MessageTooLarge);
        assert!(
            problem.detail.ends_with("1028 bytes; the topic's max.message.bytes is 1027"),
            "{}",
            problem.detail
        );
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
}
