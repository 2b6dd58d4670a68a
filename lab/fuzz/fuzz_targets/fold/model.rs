//! What the fold must come to, the naive way.

use std::collections::HashMap;

use tally_counts::ledger::RESERVED_NAMESPACE;
use tally_counts::{
    Duplicates, Envelope, Fingerprint, Flush, Fold, Horizon, Reject, Rules, Sums, check_size,
};
use tally_schemas::Increment;

/// What is counted, and what of.
type Counter<'a> = (&'a str, &'a str, u32);

struct Row {
    place: usize,
    sum: i128,
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
    rows: HashMap<Counter<'static>, Row>,
}

pub struct Model {
    rules: Rules,
    /// Each id, a batch's or an increment's, and where it was seen last; the newest is at the end.
    ids: Vec<((bool, &'static str), i64)>,
    pub expected: Expected,
}

impl Model {
    pub fn new(rules: Rules) -> Model {
        Model { rules, ids: Vec::new(), expected: Expected::default() }
    }

    /// Whether the id is remembered; it is now.
    fn see(&mut self, id: (bool, &'static str), offset: i64) -> bool {
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
        } else if !(0..1 << 32).contains(&at_s) {
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
    ) -> Result<(), Reject> {
        let counters: Vec<_> = increments
            .iter()
            .map(|increment| self.counter(increment, envelope.timestamp_ms))
            .collect::<Result<_, _>>()?;
        check_size(increments.iter().copied())?;
        let mut new = Vec::new();
        for (increment, counter) in increments.iter().zip(counters) {
            if increment.id.is_none_or(|id| !self.see((false, id), envelope.offset)) {
                new.push((counter, increment.delta));
            }
        }
        let repeated = increments.len() - new.len();
        if envelope.batch_id.is_some_and(|id| self.see((true, id), envelope.offset)) {
            self.expected.duplicates.batches += 1;
            self.expected.duplicate += 1;
            return Ok(());
        }
        if repeated > 0 && new.is_empty() {
            self.expected.duplicate += 1;
        } else {
            self.expected.add(&new)?;
            self.expected.counted += 1;
        }
        self.expected.duplicates.increments += repeated as u64;
        Ok(())
    }
}

impl Expected {
    /// Adds all, or none if a sum does not fit 64 bits on the way.
    fn add(&mut self, new: &[(Counter<'static>, i64)]) -> Result<(), Reject> {
        let mut sums: HashMap<Counter<'_>, i128> = HashMap::new();
        for &(counter, delta) in new {
            let sum = sums
                .entry(counter)
                .or_insert_with(|| self.rows.get(&counter).map_or(0, |row| row.sum));
            *sum += i128::from(delta);
            i64::try_from(*sum).map_err(|_| Reject::Overflow)?;
        }
        for &(counter, delta) in new {
            let place = self.rows.len();
            let row = self.rows.entry(counter).or_insert(Row { place, sum: 0, events: 0 });
            row.sum += i128::from(delta);
            row.events += 1;
        }
        self.increments += new.len() as u64;
        Ok(())
    }

    pub fn check(&self, flush: &Flush) {
        let Flush { counted, duplicate, rejected, increments, duplicates, .. } = *flush;
        assert_eq!(counted + duplicate + rejected, self.seen);
        assert_eq!((counted, duplicate, rejected), (self.counted, self.duplicate, self.rejected));
        assert_eq!((increments, duplicates), (self.increments, self.duplicates));
        self.check_sums(&flush.sums);
        let fingerprint = flush.sums.iter().fold(Fingerprint::ZERO, |total, delta| {
            total + Fingerprint::of_row(delta.namespace, delta.key, delta.bucket_s, delta.sum)
        });
        assert_eq!(flush.fingerprint, fingerprint);
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
            let row = self.rows.get(&(delta.namespace, delta.key, delta.bucket_s));
            let row = row.unwrap_or_else(|| panic!("{delta:?} was not counted"));
            assert_eq!(
                (place, i128::from(delta.sum), delta.events),
                (row.place, row.sum, row.events)
            );
            bytes += delta.encoded_bytes();
        }
        assert!(bytes <= sums.encoded_bytes());
    }
}
