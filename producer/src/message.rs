//! From a body's increments to the messages of the log that carry them: one, unless ids say that
//! they belong to several partitions.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use axum::http::HeaderMap;
use tally_counts::{NameError, check_name, check_size};
use tally_schemas::{BatchEncoder, Increment, encode, wire};

use crate::body::{Item, Parsed, Shape};
use crate::partitioner::Partitioner;

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

/// How much of a request is recognised when it comes again, and therefore not counted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recognised {
    /// It has an Idempotency-Key, or each of its increments has an id.
    Whole,
    /// All its increments but so many, which have no id.
    AllBut {
        bare: usize,
    },
    Nothing,
}

/// A request as it goes into the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Messages {
    /// At least one, and each to a partition of its own.
    pub(crate) list: Vec<Message>,
    pub(crate) recognised: Recognised,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) destination: Destination,
    pub(crate) payload: Vec<u8>,
    pub(crate) increments: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Partition(i32),
    /// Messages with equal keys go to the same partition.
    Key(Vec<u8>),
    /// Any partition.
    Any,
}

impl Messages {
    /// Writes the increments: a single one as `tally.Increment`, many as `tally.IncrementBatch`.
    ///
    /// Where no increment has an id, the request is one message. Where some have, there is a
    /// message for each of the partitions that their ids say (there are `partitions`), and the
    /// increments without an id travel with the first one that has one.
    ///
    /// A request with an Idempotency-Key is made of batches, however few its increments are: the id
    /// that makes it count once is the batch's, the same in each of them. Where increments without
    /// any id are in a message, it gets `unique`, as its batch's or its own: the Kafka client may
    /// append a message twice when it has lost the answer.
    pub(crate) fn new(
        parsed: &Parsed<'_>,
        idempotency_key: Option<&str>,
        unique: &str,
        schema_ids: SchemaIds,
        partitions: NonZeroU32,
    ) -> Result<Messages, Error> {
        let id = match (idempotency_key, parsed.id) {
            (Some(header), Some(own)) if header != own => {
                return Err(Error::OtherId { header: header.to_owned(), own: own.to_owned() });
            }
            (header, own) => header.or(own),
        };
        let writer = Writer { is_single: parsed.shape == Shape::Single, id, unique, schema_ids };
        let routes = routes(parsed, id, partitions).into_iter();
        let list = routes.map(|(destination, items)| writer.write(destination, &items));
        Ok(Messages { list: list.collect::<Result<_, _>>()?, recognised: recognised(parsed, id) })
    }

    pub(crate) fn increments(&self) -> usize {
        self.list.iter().map(|message| message.increments).sum()
    }

    /// Refuses what the topic, whose messages may have `max_bytes`, would refuse.
    pub(crate) fn check_size(&self, max_bytes: usize) -> Result<(), Error> {
        self.list.iter().try_for_each(|message| message.check_size(max_bytes))
    }
}

impl Message {
    /// What it takes in the Kafka client's queue.
    pub(crate) fn bytes(&self) -> usize {
        self.payload.len() + self.destination.key().map_or(0, <[u8]>::len)
    }

    fn check_size(&self, max_bytes: usize) -> Result<(), Error> {
        let bytes = self.bytes() + FRAME_BYTES;
        if bytes > max_bytes {
            return Err(Error::TooLong { increments: self.increments, bytes, max_bytes });
        }
        Ok(())
    }
}

impl Destination {
    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self {
            Destination::Key(key) => Some(key),
            Destination::Partition(_) | Destination::Any => None,
        }
    }
}

fn recognised(parsed: &Parsed<'_>, id: Option<&str>) -> Recognised {
    let bare = parsed.items.iter().filter(|item| item.id.is_none()).count();
    match (id, bare) {
        (Some(_), _) | (None, 0) => Recognised::Whole,
        (None, bare) if bare == parsed.items.len() => Recognised::Nothing,
        (None, bare) => Recognised::AllBut { bare },
    }
}

/// Which increments go where. What is meant to count once goes to one partition however often it is
/// sent: an increment with an id to that of its counter and id; without such, the request to that
/// of its own id. A single increment without any is keyed by its counter.
fn routes<'p, 'a>(
    parsed: &'p Parsed<'a>,
    id: Option<&str>,
    partitions: NonZeroU32,
) -> Vec<(Destination, Vec<&'p Item<'a>>)> {
    let mut partitioner = Partitioner::new(partitions);
    let mut partition = |item: &Item<'_>| {
        let id = item.id.as_deref()?;
        Some(partitioner.partition(&item.namespace, &item.key, id))
    };
    let partitions: Vec<Option<i32>> = parsed.items.iter().map(&mut partition).collect();
    let Some(first) = partitions.iter().copied().flatten().next() else {
        let destination = match (id, &parsed.items[..], parsed.shape) {
            (Some(id), ..) => Destination::Key(id.into()),
            (None, [item], Shape::Single) => {
                Destination::Key([item.namespace.as_bytes(), item.key.as_bytes()].join(&b'\0'))
            }
            (None, ..) => Destination::Any,
        };
        return vec![(destination, parsed.items.iter().collect())];
    };
    let mut routes: BTreeMap<i32, Vec<&Item<'_>>> = BTreeMap::new();
    for (item, partition) in parsed.items.iter().zip(partitions) {
        routes.entry(partition.unwrap_or(first)).or_default().push(item);
    }
    routes
        .into_iter()
        .map(|(partition, items)| (Destination::Partition(partition), items))
        .collect()
}

/// Writes a request's messages.
struct Writer<'r> {
    is_single: bool,
    /// The request's own id.
    id: Option<&'r str>,
    unique: &'r str,
    schema_ids: SchemaIds,
}

impl Writer<'_> {
    fn write(&self, destination: Destination, items: &[&Item<'_>]) -> Result<Message, Error> {
        if check_size(items.iter().map(|item| item.increment())).is_err() {
            return Err(Error::TooManyDeltas { increments: items.len() });
        }
        let mut payload = Vec::new();
        match (items, self.is_single, self.id) {
            ([item], true, None) => {
                payload.extend_from_slice(&wire::prefix(self.schema_ids.increment));
                let increment = item.increment();
                let id = increment.id.or(Some(self.unique));
                encode::increment(&mut payload, &Increment { id, ..increment });
            }
            _ => {
                payload.extend_from_slice(&wire::prefix(self.schema_ids.batch));
                let mut batch = BatchEncoder::new();
                items.iter().for_each(|item| batch.push(&item.increment()));
                let is_bare = items.iter().any(|item| item.id.is_none());
                batch.finish(&mut payload, self.id.or(is_bare.then_some(self.unique)));
            }
        }
        Ok(Message { destination, payload, increments: items.len() })
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
