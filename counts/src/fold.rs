use tally_schemas::Increment;

use crate::ledger::RESERVED_NAMESPACE;
use crate::sums::{OverflowAt, Place};
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
    /// Those of the message at hand: a buffer.
    places: Vec<Place>,
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
            places: Vec::new(),
        }
    }

    /// Counts the message at `offset`, whole: either every increment is added, or none and the reason comes back, for
    /// [`Fold::reject`].
    ///
    /// # Panics
    /// If `offset` was seen already: the caller's log is out of order.
    pub fn count(&mut self, offset: i64, increments: &[Increment<'_>]) -> Result<(), Reject> {
        if let (_, Some(reason)) = self.place(increments) {
            return Err(reason);
        }
        self.sums.add_all(increments, &self.places).map_err(|_| Reject::Overflow)?;
        self.see(offset);
        self.counted += 1;
        self.increments += increments.len() as u64;
        Ok(())
    }

    /// Counts messages that hold one increment each, as [`Fold::count`] would one after the other; many together cost less.
    ///
    /// An error names the first message that was not counted by its index. Those before it are counted, those after it
    /// wait for another call.
    ///
    /// # Panics
    /// If an offset was seen already, or if there are not as many offsets as increments.
    pub fn count_singles(
        &mut self,
        offsets: &[i64],
        increments: &[Increment<'_>],
    ) -> Result<(), (usize, Reject)> {
        assert_eq!(offsets.len(), increments.len(), "every message has its offset");
        let (sound, mut refused) = self.place(increments);
        let mut counted = sound;
        if let Err(OverflowAt(index)) = self.sums.add_each(&increments[..sound], &self.places) {
            (counted, refused) = (index, Some(Reject::Overflow));
        }
        for &offset in &offsets[..counted] {
            self.see(offset);
        }
        self.counted += counted as u64;
        self.increments += counted as u64;
        refused.map_or(Ok(()), |reason| Err((counted, reason)))
    }

    /// Places the increments up to the first that may not be counted; how many there are, and what is wrong with that one.
    fn place(&mut self, increments: &[Increment<'_>]) -> (usize, Option<Reject>) {
        self.places.clear();
        for increment in increments {
            match self.bucket(increment) {
                Ok(bucket) => self.places.push(self.sums.place(increment.namespace, increment.key, bucket)),
                Err(reason) => return (self.places.len(), Some(reason)),
            }
        }
        (self.places.len(), None)
    }

    /// Accounts for the message at `offset` as rejected.
    pub fn reject(&mut self, offset: i64) {
        self.see(offset);
        self.rejected += 1;
    }

    /// Whether one increment may be counted at all.
    pub fn check(&self, increment: &Increment<'_>) -> Result<(), Reject> {
        self.bucket(increment).map(|_| ())
    }

    /// The bucket of an increment that may be counted.
    #[inline(always)]
    fn bucket(&self, increment: &Increment<'_>) -> Result<u32, Reject> {
        let named = |name: &str| (1..=Self::MAX_NAME_BYTES).contains(&name.len());
        if !named(increment.namespace) || !named(increment.key) {
            return Err(Reject::NameOutOfRange);
        }
        if increment.namespace == RESERVED_NAMESPACE {
            return Err(Reject::ReservedNamespace);
        }
        self.width.bucket(increment.at_ms)
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
        let places = std::mem::take(&mut self.places);
        let next = Fold { places, ..Fold::new(self.width, self.to) };
        let ended = std::mem::replace(self, next);
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

    /// Gives the memory of a flush's sums to the next flush. Where something was summed since, it is dropped instead.
    pub fn reuse(&mut self, mut sums: Sums) {
        if self.sums.is_empty() {
            sums.clear();
            self.sums = sums;
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
    fn memory_that_comes_back_late_does_not_replace_what_was_summed_since() {
        let mut fold = Fold::new(BucketWidth::MINUTE, 0);
        fold.count(0, &[increment("a", 1, 0)]).unwrap();
        let first = fold.take();
        fold.reuse(first.sums);
        assert!(fold.sums().is_empty());
        fold.count(1, &[increment("b", 2, 0)]).unwrap();
        let second = fold.take();
        assert_eq!((second.from, second.to, second.increments), (1, 2, 1));
        fold.count(2, &[increment("c", 3, 0)]).unwrap();
        fold.reuse(second.sums);
        let keys = |sums: &Sums| sums.iter().map(|d| d.key.to_owned()).collect::<Vec<_>>();
        assert_eq!(keys(fold.sums()), ["c"]);
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

        /// Messages of one increment each: counted together, they come to what they come to one by one.
        #[test]
        fn singles_together_are_singles_one_by_one(
            messages in prop::collection::vec(("[a-c]{0,1}", prop_oneof![9 => -9i64..9, 1 => any::<i64>()], -1i64..200_000, 1i64..3), 0..80),
        ) {
            let increments: Vec<_> = messages.iter().map(|(k, d, at, _)| increment(k, *d, *at)).collect();
            let offsets: Vec<_> = messages.iter().scan(0, |at, (_, _, _, gap)| { *at += gap; Some(*at) }).collect();
            let mut one_by_one = Fold::new(BucketWidth::MINUTE, 0);
            let mut reasons = Vec::new();
            for (offset, increment) in offsets.iter().zip(&increments) {
                if let Err(reason) = one_by_one.count(*offset, std::slice::from_ref(increment)) {
                    one_by_one.reject(*offset);
                    reasons.push((*offset, reason));
                }
            }
            let mut together = Fold::new(BucketWidth::MINUTE, 0);
            let mut refused = Vec::new();
            let mut start = 0;
            while let Err((index, reason)) = together.count_singles(&offsets[start..], &increments[start..]) {
                together.reject(offsets[start + index]);
                refused.push((offsets[start + index], reason));
                start += index + 1;
            }
            prop_assert_eq!(refused, reasons);
            let (together, one_by_one) = (together.take(), one_by_one.take());
            prop_assert!(together.sums.iter().eq(one_by_one.sums.iter()));
            prop_assert_eq!(
                (together.to, together.counted, together.rejected, together.increments, together.fingerprint),
                (one_by_one.to, one_by_one.counted, one_by_one.rejected, one_by_one.increments, one_by_one.fingerprint)
            );
        }
    }
}
