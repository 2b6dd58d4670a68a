//! Any log, flushed anywhere, through the fold and through a naive model of it.
//!
//! ```text
//!  steps ─┬─► Fold::count, reject, take, reuse ─► flushes ───────────┬─► the same rows, in the
//!         ├─► Model: a list of sums, a list of ids ──────────────────┤   same order, and the same
//!         └─► another Fold, taken once at the end ─► fingerprint ────┘   accounting
//! ```
//!
//! The names of a flush come from an arena, unchecked: each is checked here.

#![no_main]

mod model;

use std::num::NonZeroU32;
use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tally_counts::ledger::RESERVED_NAMESPACE;
use tally_counts::{
    BucketWidth, Duplicates, Envelope, Fingerprint, Flush, Fold, Horizon, IdScope, Reject, Rules,
    Sums,
};
use tally_schemas::Increment;

use model::Model;

#[derive(Arbitrary, Debug)]
struct Log {
    width: u8,
    horizon_offsets: u8,
    horizon_ids: u8,
    ids_of_counters: bool,
    max_future_s: u16,
    min_event_s: u8,
    from: u32,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Message {
        gap: u8,
        written: Option<Moment>,
        batch: Option<u8>,
        items: Vec<Item>,
    },
    /// A message of many counters: with some of them the table grows.
    Spread {
        gap: u8,
        namespace: Name,
        first: u8,
        counters: u8,
        id: Option<u8>,
        delta: Number,
    },
    Reject {
        gap: u8,
    },
    Flush,
    /// The memory of the last flush comes back.
    Reuse,
}

#[derive(Arbitrary, Debug)]
struct Item {
    namespace: Name,
    key: Name,
    delta: Number,
    at: Moment,
    id: Option<u8>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Name(u8);

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Small(i8),
    Extreme(i8),
    Any(i64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Moment {
    HalfMinute(u8),
    Last(u8),
    Any(i64),
}

/// Names of every length that is compared in its own way, in characters of one, two and four bytes.
/// Many repeat one character, so that two pairs of names can be the same bytes with the border
/// elsewhere.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    // Few long ones: they take most of the time.
    let long = [Fold::MAX_NAME_BYTES, Fold::MAX_NAME_BYTES + 1].map(|len| "x".repeat(len));
    let mut names: Vec<String> = long.into();
    names.push(RESERVED_NAMESPACE.to_owned());
    for len in [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 200] {
        for (fill, other) in [('x', 'y'), ('ß', 'þ'), ('🐙', '🐚')] {
            let chars = len / fill.len_utf8();
            for odd in [chars, chars.saturating_sub(1)] {
                names.push((0..chars).map(|at| if at == odd { other } else { fill }).collect());
            }
        }
    }
    names.sort_by_key(String::len);
    names.dedup();
    names
});

static DECIMALS: LazyLock<Vec<String>> =
    LazyLock::new(|| (0..2304).map(|n| n.to_string()).collect());

impl Name {
    fn text(self) -> &'static str {
        &NAMES[usize::from(self.0) % NAMES.len()]
    }
}

impl Number {
    fn value(self) -> i64 {
        match self {
            Number::Small(number) => number.into(),
            Number::Extreme(from @ 0..) => i64::MAX - i64::from(from),
            Number::Extreme(from) => i64::MIN - i64::from(from) - 1,
            Number::Any(number) => number,
        }
    }
}

impl Moment {
    fn ms(self) -> i64 {
        match self {
            Moment::HalfMinute(n) => i64::from(n) * 30_000 - 30_000,
            Moment::Last(n) => i64::from(u32::MAX) * 1000 + 1000 - i64::from(n),
            Moment::Any(ms) => ms,
        }
    }
}

fn id(id: Option<u8>) -> Option<&'static str> {
    id.map(|id| DECIMALS[usize::from(id)].as_str())
}

/// The fold, and what it is compared with.
struct Run {
    fold: Fold,
    replay: Fold,
    model: Model,
    flushed: Fingerprint,
    total: [u64; 6],
    spare: Option<Sums>,
}

impl Run {
    fn message(&mut self, envelope: &Envelope<'static>, increments: &[Increment<'static>]) {
        let counted = self.fold.count(envelope, increments);
        assert_eq!(counted, self.model.count(envelope, increments), "{envelope:?} {increments:?}");
        assert_eq!(counted, self.replay.count(envelope, increments), "wherever it is flushed");
        match counted {
            Ok(_) => self.model.expected.seen += 1,
            Err(reason) => self.reject(envelope.offset, reason),
        }
    }

    fn reject(&mut self, offset: i64, reason: Reject) {
        self.model.expected.seen += 1;
        self.model.expected.rejected += 1;
        self.fold.reject(offset, reason, b"");
        self.replay.reject(offset, reason, b"");
    }

    fn flush(&mut self) {
        let to = self.fold.next();
        let flush = self.fold.take();
        assert!(flush.to == to && self.fold.is_clean());
        std::mem::take(&mut self.model.expected).check(&flush);
        self.flushed += flush.sums.fingerprint();
        for (total, count) in self.total.iter_mut().zip(counts(&flush)) {
            *total += count;
        }
        self.spare = Some(flush.sums);
    }
}

fn counts(flush: &Flush) -> [u64; 6] {
    let Duplicates { batches, increments, .. } = flush.duplicates;
    [flush.counted, flush.duplicate, flush.rejected, flush.increments, batches, increments]
}

fuzz_target!(|log: Log| {
    let width = [1, 60, 3600, 86_400][usize::from(log.width) % 4];
    let rules = Rules {
        width: BucketWidth::from_secs(width).expect("it divides a day"),
        horizon: Horizon {
            offsets: log.horizon_offsets.into(),
            ids: NonZeroU32::MIN.saturating_add(log.horizon_ids.into()),
        },
        max_future_s: log.max_future_s.into(),
        min_event_s: log.min_event_s.into(),
        ids_within: if log.ids_of_counters { IdScope::Counter } else { IdScope::Partition },
    };
    let fold = || Fold::new(rules, log.from.into());
    let (flushed, total, spare) = (Fingerprint::ZERO, [0; 6], None);
    let mut run =
        Run { fold: fold(), replay: fold(), model: Model::new(rules), flushed, total, spare };
    for step in log.steps {
        let next = run.fold.next();
        match step {
            Step::Message { gap, written, batch, items } => {
                let timestamp_ms = written.map(Moment::ms);
                let offset = next + i64::from(gap);
                let envelope = Envelope { offset, timestamp_ms, schema: 1, batch_id: id(batch) };
                let increments: Vec<_> = items
                    .iter()
                    .map(|item| Increment {
                        namespace: item.namespace.text(),
                        key: item.key.text(),
                        delta: item.delta.value(),
                        at_ms: item.at.ms(),
                        id: id(item.id),
                    })
                    .collect();
                run.message(&envelope, &increments);
            }
            Step::Spread { gap, namespace, first, counters, id, delta } => {
                let offset = next + i64::from(gap);
                let envelope =
                    Envelope { offset, timestamp_ms: None, schema: 1, batch_id: self::id(id) };
                let (namespace, delta) = (namespace.text(), delta.value());
                let keys = DECIMALS[usize::from(first) * 8..].iter().take(counters.into());
                let increments: Vec<_> = keys
                    .map(|key| Increment { namespace, key, delta, at_ms: 0, id: None })
                    .collect();
                run.message(&envelope, &increments);
            }
            Step::Reject { gap } => run.reject(next + i64::from(gap), Reject::Undecodable),
            Step::Flush => run.flush(),
            Step::Reuse => {
                if let Some(sums) = run.spare.take() {
                    run.fold.reuse(sums);
                }
            }
        }
    }
    run.flush();
    let replayed = run.replay.take();
    assert_eq!((replayed.sums.fingerprint(), counts(&replayed)), (run.flushed, run.total));
});
