//! What each message holds: a function of the seed, the way it goes in, its number, and the event
//! clock when it was sent.
//!
//! The record therefore keeps only a few bytes a message, and the audit makes the messages again.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use strum::Display;

use super::codec::{self, Increment, IncrementBatch, SchemaIds};
use super::counters::{Counters, READS};
use super::dice::dice;

const MOST_IN_BATCH: u64 = 50;
/// Increments of different messages that share an id: each is counted once a counter and partition.
const SHARED_IDS: u64 = 50;

const NO_SUCH_SCHEMA: u32 = 1_999_999_999;
/// Bad messages with this bit in their number are small in the log, and huge once decompressed.
pub(super) const POISON: u32 = 1 << 31;
/// More than a batch may come to.
const POISON_BYTES: usize = 300 << 20;
/// More than a message may hold; each of seven bytes.
const POISON_INCREMENTS: usize = 12_000_000;
const DAY_MS: i64 = 24 * 3600 * 1000;
const TOO_LARGE: &str = "too_large";

/// How a message goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
#[strum(serialize_all = "lowercase")]
pub(super) enum Route {
    /// One increment, by a Kafka producer.
    Single,
    /// A batch, by a Kafka producer.
    Batch,
    Request,
    /// By a Kafka producer, and to be rejected.
    Bad,
}

/// How often the increments count, if their message is there more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    /// They have no ids: it must not be there again.
    EachTime,
    /// The batch has an id.
    OnceByBatch,
    /// Each increment has an id of its own.
    OnceByIncrement,
}

#[derive(Debug)]
pub(super) struct Content {
    pub(super) counts: Counts,
    /// Whether it is sent more than once on purpose.
    pub(super) repeats: bool,
    pub(super) batch: IncrementBatch,
    /// Whether it is a single increment, not an array of them.
    pub(super) is_single: bool,
}

struct ContentTraits {
    counts: Counts,
    repeats: bool,
    /// Some of its increments have ids that others have too.
    shares_ids: bool,
    is_single: bool,
}

/// What is to be rejected, and the reason that must be given.
#[derive(Debug)]
pub(super) struct Bad {
    pub(super) reason: &'static str,
    pub(super) payload: Vec<u8>,
}

impl Bad {
    /// What the topic of rejections has of it: one that is too large is not copied.
    pub(super) fn copy(&self) -> &[u8] {
        if self.reason == TOO_LARGE { &[] } else { &self.payload }
    }
}

pub(super) struct LoadPlan {
    seed: u64,
    /// Whether ids are used, and messages sent more than once.
    ids: bool,
    pub(super) schemas: SchemaIds,
    pub(super) counters: Counters,
}

impl LoadPlan {
    pub(super) fn new(seed: u64, ids: bool, schemas: SchemaIds) -> LoadPlan {
        LoadPlan { seed, ids, schemas, counters: Counters::new() }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn ids(&self) -> bool {
        self.ids
    }

    /// Dice for what happens to a message on its way, which its content does not depend on.
    pub(super) fn fate(&self, way: Route, number: u32) -> ChaCha8Rng {
        dice(self.seed, 16 + way as u32, number)
    }

    pub(super) fn content(&self, way: Route, number: u32, clock_ms: i64) -> Content {
        let mut dice = dice(self.seed, way as u32, number);
        let ContentTraits { counts, repeats, shares_ids, is_single } = self.shape(way, &mut dice);
        let count = if is_single { 1 } else { 1 + dice.random_range(0..MOST_IN_BATCH) };
        let name = format!("{way}-{number}");
        let increments = (0..count)
            .map(|item| {
                let (counter, delta) = self.counters.pick(&mut dice);
                let (namespace, key) = self.counters.name(counter);
                let at = clock_ms + shift_ms(&mut dice);
                let id = match counts {
                    Counts::OnceByIncrement => Some(format!("{name}-{item}")),
                    // Reads are held against bounds, so each of their increments must count.
                    _ if shares_ids && namespace != READS && dice.random_range(0..2) == 0 => {
                        Some(format!("shared-{}", dice.random_range(0..SHARED_IDS)))
                    }
                    _ => None,
                };
                Increment { namespace: namespace.into(), key: key.into(), delta, at, id }
            })
            .collect();
        // A request is recognised by its id, whether or not ids are on.
        let has_id = counts == Counts::OnceByBatch || (way == Route::Request && !self.ids);
        Content {
            counts,
            repeats,
            batch: IncrementBatch { id: has_id.then_some(name), increments },
            is_single,
        }
    }

    /// With ids on, every message has one, as everybody's should that must count once end to end:
    /// librdkafka itself, its idempotence on, appends messages twice when it begins a new epoch
    /// with requests whose answers it has lost.
    fn shape(&self, way: Route, dice: &mut impl Rng) -> ContentTraits {
        let roll = dice.random_range(0..100);
        // A request with ids of its increments may become several messages, but for a single one;
        // the record knows one message of each.
        let is_single = way == Route::Single || (way == Route::Request && self.ids && roll >= 70);
        if !self.ids {
            return ContentTraits {
                counts: Counts::EachTime,
                repeats: false,
                shares_ids: false,
                is_single,
            };
        }
        let (counts, shares_ids) = match (way, roll) {
            (Route::Batch, ..4) => (Counts::OnceByBatch, true),
            (Route::Batch, ..60) | (Route::Request, ..70) => (Counts::OnceByBatch, false),
            _ => (Counts::OnceByIncrement, false),
        };
        let repeats = way == Route::Request || dice.random_range(0..100) < 15;
        ContentTraits { counts, repeats, shares_ids, is_single }
    }

    /// The message of a Kafka producer.
    pub(super) fn payload(&self, content: &Content) -> Vec<u8> {
        match (&content.batch.increments[..], content.is_single) {
            ([increment], true) => codec::write_single(self.schemas, increment),
            _ => codec::write_batch(self.schemas, &content.batch),
        }
    }

    pub(super) fn bad(&self, number: u32, clock_ms: i64) -> Bad {
        let mut dice = dice(self.seed, Route::Bad as u32, number);
        if number & POISON != 0 {
            return Bad { reason: TOO_LARGE, payload: self.poison(dice.random()) };
        }
        let sound = Increment {
            namespace: "bad".into(),
            key: format!("bad-{number}"),
            delta: dice.random_range(1..=1 << 40),
            at: clock_ms,
            id: None,
        };
        let single = |increment: Increment| codec::write_single(self.schemas, &increment);
        let (reason, payload) = match dice.random_range(0..7) {
            0 => {
                let body = &single(sound)[5..];
                ("unknown_schema", [&codec::frame(NO_SUCH_SCHEMA)[..], body].concat())
            }
            1 => ("not_framed", format!("{{\"garbage\": {}}}", dice.random::<u64>()).into_bytes()),
            2 => {
                let whole = single(sound);
                ("undecodable", whole[..whole.len() - 4].to_vec())
            }
            3 => ("reserved_namespace", single(Increment { namespace: "__tally".into(), ..sound })),
            4 => {
                let at = [-sound.delta, clock_ms / 1000, i64::MAX][dice.random_range(0..3)];
                ("event_time_out_of_range", single(Increment { at, ..sound }))
            }
            5 => {
                let nameless = Increment { key: String::new(), ..sound.clone() };
                let batch = IncrementBatch { id: None, increments: vec![sound, nameless] };
                ("name_out_of_range", codec::write_batch(self.schemas, &batch))
            }
            _ => ("future_event_time", single(Increment { at: clock_ms + 5 * DAY_MS, ..sound })),
        };
        Bad { reason, payload }
    }

    /// One message of very many bytes, or of very many increments.
    fn poison(&self, is_of_bytes: bool) -> Vec<u8> {
        let mut payload = codec::frame(self.schemas.batch);
        if is_of_bytes {
            payload.resize(POISON_BYTES, 0);
            return payload;
        }
        // No id, then one block of items, then none.
        payload.push(0);
        codec::write_long(&mut payload, POISON_INCREMENTS as i64);
        for _ in 0..POISON_INCREMENTS {
            // Namespace and key of one letter, delta 1, at 0, no id.
            payload.extend_from_slice(b"\x02p\x02k\x02\x00\x00");
        }
        payload.push(0);
        payload
    }
}

/// Most events happened just now, some hours ago, a few will in some minutes.
fn shift_ms(dice: &mut impl Rng) -> i64 {
    match dice.random_range(0..100u32) {
        ..90 => -dice.random_range(0..5_000),
        90..98 => -dice.random_range(0..2 * 3600 * 1000),
        _ => dice.random_range(0..10 * 60 * 1000),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SCHEMAS: SchemaIds = SchemaIds { increment: 1, batch: 2 };
    const CLOCK_MS: i64 = 1_780_000_000_000;

    #[test]
    fn a_message_is_made_again_as_it_was() {
        let (one, again) = (LoadPlan::new(5, true, SCHEMAS), LoadPlan::new(5, true, SCHEMAS));
        for number in 0..200 {
            for way in [Route::Single, Route::Batch, Route::Request] {
                let content = one.content(way, number, CLOCK_MS);
                assert_eq!(content.batch, again.content(way, number, CLOCK_MS).batch);
                let read = codec::read_message(SCHEMAS, &one.payload(&content)).unwrap();
                assert_eq!(read.increments, content.batch.increments);
            }
            assert_eq!(one.bad(number, CLOCK_MS).payload, again.bad(number, CLOCK_MS).payload);
        }
    }

    #[test]
    fn with_ids_all_kinds_come_up_and_every_message_is_safe_to_send_again() {
        let plan = LoadPlan::new(1, true, SCHEMAS);
        for way in [Route::Single, Route::Batch, Route::Request] {
            let contents: Vec<_> =
                (0..500).map(|number| plan.content(way, number, CLOCK_MS)).collect();
            for content in &contents {
                assert_ne!(content.counts, Counts::EachTime);
                let by_items =
                    content.batch.increments.iter().all(|increment| increment.id.is_some());
                assert!(content.batch.id.is_some() || by_items);
            }
            let repeated = contents.iter().filter(|content| content.repeats).count();
            assert_eq!(repeated == contents.len(), way == Route::Request);
            assert!(repeated > 0);
        }
        let reasons: BTreeSet<_> =
            (0..100).map(|number| plan.bad(number, CLOCK_MS).reason).collect();
        assert_eq!(reasons.len(), 7);
        let shared =
            (0..500).flat_map(|n| plan.content(Route::Batch, n, CLOCK_MS).batch.increments);
        let shared: Vec<_> =
            shared.filter(|i| i.id.as_deref().is_some_and(|id| id.starts_with("shared"))).collect();
        assert!(!shared.is_empty() && shared.iter().all(|increment| increment.namespace != READS));
    }

    #[test]
    fn without_ids_there_are_none_but_for_recognising_requests() {
        let plan = LoadPlan::new(1, false, SCHEMAS);
        for number in 0..500 {
            for way in [Route::Single, Route::Batch, Route::Request] {
                let content = plan.content(way, number, CLOCK_MS);
                assert_eq!((content.counts, content.repeats), (Counts::EachTime, false));
                assert_eq!(content.batch.id.is_some(), way == Route::Request);
                assert!(content.batch.increments.iter().all(|increment| increment.id.is_none()));
            }
        }
    }
}
