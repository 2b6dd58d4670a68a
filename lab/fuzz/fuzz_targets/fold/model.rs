//! What the fold must come to, the naive way.

use std::collections::HashMap;

use tally_counts::ledger::RESERVED_NAMESPACE;
use tally_counts::{
    CountedAs, Duplicates, Envelope, Flush, Fold, Horizon, IdScope, Reject, Rules, Sums, check_size,
};
use tally_schemas::Increment;

/// What is counted, and what of.
type Counter<'a> = (&'a str, &'a str, u32);

/// Whose id: a batch's is of no counter.
type IdOf = (Option<(&'static str, &'static str)>, bool, &'static str);

struct Row {
    counter: Counter<'static>,
    sum: i64,
    events: i64,
}

/// What the next flush must come to.
#[derive(Default)]
pub struct Expected {
    pub seen: u64,
    counted: u64,
    duplicate: u64,
    pub rejected: u64,
    increments: u64,
    duplicates: Duplicates,
    /// In the order in which they were begun.
    rows: Vec<Row>,
    /// Where each counter's last row is: where that is full, another begins.
    last: HashMap<Counter<'static>, usize>,
}

pub struct Model {
    rules: Rules,
    /// Each id, a batch's or an increment's, and where it was seen last; the newest is at the end.
    ids: Vec<(IdOf, i64)>,
    pub expected: Expected,
}

impl Model {
    pub fn new(rules: Rules) -> Model {
        Model { rules, ids: Vec::new(), expected: Expected::default() }
    }

    /// Whether the id is remembered; it is now.
    fn see(&mut self, id: IdOf, offset: i64) -> bool {
        let Horizon { offsets, ids } = self.rules.horizon;
        self.ids.retain(|&(_, at)| at >= offset - i64::from(offsets));
        let known = self.ids.iter().position(|&(known, _)| known == id);
        if let Some(known) = known {
            self.ids.remove(known);
        }
        self.ids.push((id, offset));
        if self.ids.len() > ids.get() as usize {
            self.ids.remove(0);
        }
        known.is_some()
    }

    fn counter(
        &self,
        increment: &Increment<'static>,
        written_ms: Option<i64>,
    ) -> Result<Counter<'static>, Reject> {
        let &Increment { namespace, key, at_ms, .. } = increment;
        let width_s = i128::from(self.rules.width.as_secs());
        let at_s = i128::from(at_ms).div_euclid(1000);
        let latest_ms = |ms| i128::from(ms) + i128::from(self.rules.max_future_s) * 1000;
        if [namespace, key].iter().any(|name| name.is_empty() || name.len() > Fold::MAX_NAME_BYTES)
        {
            Err(Reject::NameOutOfRange)
        } else if namespace == RESERVED_NAMESPACE {
            Err(Reject::ReservedNamespace)
        } else if !(i128::from(self.rules.min_event_s)..1 << 32).contains(&at_s) {
            Err(Reject::EventTimeOutOfRange)
        } else if written_ms.is_some_and(|ms| i128::from(at_ms) > latest_ms(ms)) {
            Err(Reject::FutureEventTime)
        } else {
            Ok((namespace, key, (at_s / width_s * width_s) as u32))
        }
    }

    pub fn count(
        &mut self,
        envelope: &Envelope<'static>,
        increments: &[Increment<'static>],
    ) -> Result<CountedAs, Reject> {
        let counters: Vec<_> = increments
            .iter()
            .map(|increment| self.counter(increment, envelope.timestamp_ms))
            .collect::<Result<_, _>>()?;
        check_size(increments.iter().copied())?;
        let mut new = Vec::new();
        for (increment, counter) in increments.iter().zip(counters) {
            let of = match self.rules.ids_within {
                IdScope::Counter => Some((increment.namespace, increment.key)),
                IdScope::Partition => None,
            };
            if increment.id.is_none_or(|id| !self.see((of, false, id), envelope.offset)) {
                new.push((counter, increment.delta));
            }
        }
        let repeated = increments.len() - new.len();
        if envelope.batch_id.is_some_and(|id| self.see((None, true, id), envelope.offset)) {
            self.expected.duplicates.batches += 1;
            self.expected.duplicate += 1;
            return Ok(CountedAs::Duplicate);
        }
        self.expected.duplicates.increments += repeated as u64;
        if repeated > 0 && new.is_empty() {
            self.expected.duplicate += 1;
            return Ok(CountedAs::Duplicate);
        }
        self.expected.add(&new);
        self.expected.counted += 1;
        Ok(CountedAs::New)
    }
}

impl Expected {
    fn add(&mut self, new: &[(Counter<'static>, i64)]) {
        for &(counter, delta) in new {
            let last = self.last.get(&counter).map(|at| &mut self.rows[*at]);
            match last.and_then(|row| Some((row.sum.checked_add(delta)?, row))) {
                Some((sum, row)) => (row.sum, row.events) = (sum, row.events + 1),
                None => {
                    self.last.insert(counter, self.rows.len());
                    self.rows.push(Row { counter, sum: delta, events: 1 });
                }
            }
        }
        self.increments += new.len() as u64;
    }

    pub fn check(&self, flush: &Flush) {
        let Flush { counted, duplicate, rejected, increments, ref duplicates, .. } = *flush;
        assert_eq!(counted + duplicate + rejected, self.seen);
        assert_eq!((counted, duplicate, rejected), (self.counted, self.duplicate, self.rejected));
        assert_eq!(increments, self.increments);
        let told = |duplicates: &Duplicates| (duplicates.batches, duplicates.increments);
        assert_eq!(told(duplicates), told(&self.duplicates));
        self.check_sums(&flush.sums);
    }

    fn check_sums(&self, sums: &Sums) {
        assert_eq!((sums.len(), sums.iter().len()), (self.rows.len(), self.rows.len()));
        let mut bytes = 0;
        for (place, delta) in sums.iter().enumerate() {
            for name in [delta.namespace, delta.key] {
                assert!(
                    str::from_utf8(name.as_bytes()).is_ok(),
                    "{:?} is not UTF-8",
                    name.as_bytes()
                );
            }
            let Row { counter, sum, events } = self.rows[place];
            assert_eq!((delta.namespace, delta.key, delta.bucket_s), counter);
            assert_eq!((delta.sum, delta.events), (sum, events));
            bytes += delta.encoded_bytes();
        }
        assert!(bytes <= sums.encoded_bytes());
    }
}
