use tally_schemas::Increment;

use crate::ledger::RESERVED_NAMESPACE;
use crate::{BucketWidth, Fingerprint, Reject, Sums, next_offset};

/// The fold of one partition: from messages in offset order to the deltas of a flush and their accounting.
///
/// Every message that was seen ends as counted, duplicate or rejected, and as one of them only. Aggregator and reconciler
/// both fold with this, so equal logs come to equal sums.
pub struct Fold {
    width: BucketWidth,
    from: i64,
    to: i64,
    counted: u64,
    duplicate: u64,
    rejected: u64,
    increments: u64,
    sums: Sums,
}

/// What the messages in [from, to) came to.
pub struct Flush {
    pub from: i64,
    /// The next offset to read.
    pub to: i64,
    /// Messages counted, recognised as duplicates, and rejected.
    pub counted: u64,
    pub duplicate: u64,
    pub rejected: u64,
    /// Increments in the counted messages.
    pub increments: u64,
    pub fingerprint: Fingerprint,
    pub sums: Sums,
}

impl Fold {
    /// The longest namespace or key, in bytes of UTF-8.
    pub const MAX_NAME_BYTES: usize = 4096;

    /// Starts at the next offset to read.
    pub fn new(width: BucketWidth, from: i64) -> Fold {
        Fold {
            width,
            from,
            to: from,
            counted: 0,
            duplicate: 0,
            rejected: 0,
            increments: 0,
            sums: Sums::new(),
        }
    }

    /// Counts the message at `offset`, whole: either every increment is added, or none and the reason comes back, for
    /// [`Fold::reject`].
    ///
    /// # Panics
    /// If `offset` was seen already: the caller's log is out of order.
    pub fn count(&mut self, offset: i64, increments: &[Increment<'_>]) -> Result<(), Reject> {
        for increment in increments {
            self.check(increment)?;
        }
        let entries = self.sums.len();
        for (done, increment) in increments.iter().enumerate() {
            let bucket = self.width.bucket(increment.at_ms)?;
            if self.sums.add(increment.namespace, increment.key, bucket, increment.delta).is_err() {
                for added in &increments[..done] {
                    let bucket = self.width.bucket(added.at_ms)?;
                    self.sums.take_back(added.namespace, added.key, bucket, added.delta);
                }
                self.sums.truncate(entries);
                return Err(Reject::Overflow);
            }
        }
        self.see(offset);
        self.counted += 1;
        self.increments += increments.len() as u64;
        Ok(())
    }

    /// Accounts for the message at `offset` as rejected.
    pub fn reject(&mut self, offset: i64) {
        self.see(offset);
        self.rejected += 1;
    }

    /// Whether one increment may be counted at all.
    pub fn check(&self, increment: &Increment<'_>) -> Result<(), Reject> {
        let named = |name: &str| (1..=Self::MAX_NAME_BYTES).contains(&name.len());
        if !named(increment.namespace) || !named(increment.key) {
            return Err(Reject::NameOutOfRange);
        }
        if increment.namespace == RESERVED_NAMESPACE {
            return Err(Reject::ReservedNamespace);
        }
        self.width.bucket(increment.at_ms).map(|_| ())
    }

    fn see(&mut self, offset: i64) {
        assert!(offset >= self.to, "offset {offset} comes after {} was seen", self.to);
        self.to = next_offset(offset);
    }

    /// Whether nothing was seen since the last flush.
    pub fn is_clean(&self) -> bool {
        self.from == self.to
    }

    /// The next offset to read.
    pub fn next(&self) -> i64 {
        self.to
    }

    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Takes what was summed, and starts the next flush where this one ends.
    pub fn take(&mut self) -> Flush {
        let ended = std::mem::replace(self, Fold::new(self.width, self.to));
        Flush {
            from: ended.from,
            to: ended.to,
            counted: ended.counted,
            duplicate: ended.duplicate,
            rejected: ended.rejected,
            increments: ended.increments,
            fingerprint: ended.sums.fingerprint(),
            sums: ended.sums,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn increment<'a>(key: &'a str, delta: i64, at_ms: i64) -> Increment<'a> {
        Increment { namespace: "ns", key, delta, at_ms, id: None }
    }

    #[test]
    fn a_message_is_counted_whole_or_not_at_all() {
        let mut fold = Fold::new(BucketWidth::MINUTE, 5);
        fold.count(5, &[increment("a", i64::MAX, 0)]).unwrap();
        let poisoned = [increment("b", 7, 0), increment("a", 1, 0)];
        assert_eq!(fold.count(6, &poisoned), Err(Reject::Overflow));
        fold.reject(6);
        assert_eq!(
            fold.count(9, &[increment("b", 1, 0), increment("c", 1, -1)]),
            Err(Reject::EventTimeOutOfRange)
        );
        fold.reject(9);
        let flush = fold.take();
        assert_eq!((flush.from, flush.to, flush.counted, flush.rejected, flush.increments), (5, 10, 1, 2, 1));
        let deltas: Vec<_> = flush.sums.iter().map(|d| (d.key.to_owned(), d.sum)).collect();
        assert_eq!(deltas, [("a".to_owned(), i64::MAX)]);
    }

    #[test]
    fn the_reserved_namespace_and_bad_names_are_refused() {
        let mut fold = Fold::new(BucketWidth::MINUTE, 0);
        let long = "x".repeat(Fold::MAX_NAME_BYTES + 1);
        let reserved = Increment { namespace: RESERVED_NAMESPACE, ..increment("k", 1, 0) };
        assert_eq!(fold.count(0, &[reserved]), Err(Reject::ReservedNamespace));
        assert_eq!(fold.count(0, &[increment("", 1, 0)]), Err(Reject::NameOutOfRange));
        assert_eq!(fold.count(0, &[increment(&long, 1, 0)]), Err(Reject::NameOutOfRange));
        assert!(fold.is_clean());
    }

    #[test]
    #[should_panic(expected = "offset 3 comes after 4 was seen")]
    fn a_log_out_of_order_is_a_bug() {
        let mut fold = Fold::new(BucketWidth::MINUTE, 3);
        fold.reject(3);
        fold.reject(3);
    }

    proptest! {
        /// Wherever the flushes fall, the sums and the fingerprint are those of the whole log.
        #[test]
        fn flushes_add_up_to_the_log(
            messages in prop::collection::vec(prop::collection::vec(("[a-d]", -9i64..9, 0i64..400_000), 1..5), 1..60),
            flushes in prop::collection::vec(any::<bool>(), 60),
        ) {
            let mut whole = Fold::new(BucketWidth::MINUTE, 0);
            let mut parts = Fold::new(BucketWidth::MINUTE, 0);
            let mut taken = Vec::new();
            for (offset, message) in messages.iter().enumerate() {
                let increments: Vec<_> = message.iter().map(|(k, d, at)| increment(k, *d, *at)).collect();
                whole.count(offset as i64, &increments).unwrap();
                parts.count(offset as i64, &increments).unwrap();
                if flushes[offset] {
                    taken.push(parts.take());
                }
            }
            taken.push(parts.take());
            let whole = whole.take();
            let fingerprint = taken.iter().fold(Fingerprint::ZERO, |sum, flush| sum + flush.fingerprint);
            prop_assert_eq!(fingerprint, whole.fingerprint);
            prop_assert_eq!(taken.iter().map(|f| f.counted).sum::<u64>(), whole.counted);
            prop_assert_eq!(taken.iter().map(|f| f.increments).sum::<u64>(), whole.increments);
            prop_assert!(taken.windows(2).all(|pair| pair[0].to == pair[1].from));
        }
    }
}
