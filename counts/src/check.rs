//! The rules that a message is held against by itself, whatever was counted before it.
//!
//! ```text
//!  increment ──► names ──► event time ──► its bucket
//!  message ────► each increment ──► size of its deltas
//! ```
//!
//! The fold rejects by these rules, and the gateway refuses by them what the fold would reject.

use tally_schemas::Increment;

use crate::ledger::RESERVED_NAMESPACE;
use crate::{Fold, Reject, Rules, Sums};

/// Why a message may not be counted, and for which of its increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: Reject,
    /// `None` where it is for all of them together.
    pub increment: Option<usize>,
}

impl From<Violation> for Reject {
    fn from(violation: Violation) -> Reject {
        violation.reason
    }
}

/// Why a text cannot be a namespace, a key or an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("must not be empty")]
    Empty,
    #[error("must not be longer than {} bytes of UTF-8; it has {bytes}", Fold::MAX_NAME_BYTES)]
    TooLong { bytes: usize },
    #[error("{RESERVED_NAMESPACE:?} is reserved")]
    Reserved,
}

/// Checks a whole message that Kafka gave the time `record_ms`, in milliseconds since 1970; calls
/// `each` with every increment and its bucket, until one may not be counted.
#[inline(always)]
pub fn check<'a>(
    rules: &Rules,
    record_ms: Option<i64>,
    increments: &[Increment<'a>],
    mut each: impl FnMut(&Increment<'a>, u32),
) -> Result<(), Violation> {
    let latest_ms = rules.latest_event_ms(record_ms);
    for (index, increment) in increments.iter().enumerate() {
        match check_increment(rules, latest_ms, increment) {
            Ok(bucket) => each(increment, bucket),
            Err(reason) => return Err(Violation { reason, increment: Some(index) }),
        }
    }
    check_size(increments.iter().copied()).map_err(|reason| Violation { reason, increment: None })
}

/// The bucket of an increment that may be counted.
#[inline(always)]
fn check_increment(
    rules: &Rules,
    latest_ms: i64,
    increment: &Increment<'_>,
) -> Result<u32, Reject> {
    if check_name(increment.namespace).is_err() || check_name(increment.key).is_err() {
        return Err(Reject::NameOutOfRange);
    }
    if increment.namespace == RESERVED_NAMESPACE {
        return Err(Reject::ReservedNamespace);
    }
    rules.bucket(increment.at_ms, latest_ms)
}

/// Checks a key or an id, or the length of a namespace.
#[inline(always)]
pub fn check_name(name: &str) -> Result<(), NameError> {
    match name.len() {
        0 => Err(NameError::Empty),
        1..=Fold::MAX_NAME_BYTES => Ok(()),
        bytes => Err(NameError::TooLong { bytes }),
    }
}

/// Checks a namespace.
pub fn check_namespace(namespace: &str) -> Result<(), NameError> {
    check_name(namespace)?;
    if namespace == RESERVED_NAMESPACE { Err(NameError::Reserved) } else { Ok(()) }
}

/// Checks that the deltas of one message's increments take at most
/// [`Fold::MAX_MESSAGE_DELTAS_BYTES`]; the error is [`Reject::TooLarge`].
#[inline]
pub fn check_size<'a>(
    increments: impl ExactSizeIterator<Item = Increment<'a>>,
) -> Result<(), Reject> {
    if Sums::may_fit(increments, Fold::MAX_MESSAGE_DELTAS_BYTES) {
        Ok(())
    } else {
        Err(Reject::TooLarge)
    }
}

impl Rules {
    /// The latest event time that a message may hold which Kafka gave the time `record_ms`; any,
    /// if it gave none. Milliseconds since 1970.
    #[inline]
    pub fn latest_event_ms(&self, record_ms: Option<i64>) -> i64 {
        record_ms.map_or(i64::MAX, |record_ms| {
            record_ms.saturating_add(i64::from(self.max_future_s) * 1000)
        })
    }

    /// The earliest event time, in milliseconds since 1970.
    #[inline]
    pub fn earliest_event_ms(&self) -> i64 {
        i64::from(self.min_event_s) * 1000
    }

    /// The start of the bucket of an event, in seconds since 1970, or
    /// [`Reject::EventTimeOutOfRange`], or [`Reject::FutureEventTime`] after `latest_ms`.
    #[inline(always)]
    pub fn bucket(&self, at_ms: i64, latest_ms: i64) -> Result<u32, Reject> {
        let bucket = self.width.bucket(at_ms)?;
        if at_ms < self.earliest_event_ms() {
            Err(Reject::EventTimeOutOfRange)
        } else if at_ms > latest_ms {
            Err(Reject::FutureEventTime)
        } else {
            Ok(bucket)
        }
    }

    /// The unit that a time seems to be in which is not in milliseconds: that in which it would be
    /// among the times which may count.
    pub fn seeming_unit(&self, at: i64, record_ms: Option<i64>) -> Option<&'static str> {
        let allowed = self.earliest_event_ms()..=self.latest_event_ms(record_ms);
        let in_ms = [
            ("seconds", at.checked_mul(1000)),
            ("microseconds", Some(at / 1000)),
            ("nanoseconds", Some(at / 1_000_000)),
        ];
        let may_be = |ms: Option<i64>| ms.is_some_and(|ms| allowed.contains(&ms));
        in_ms.into_iter().find(|(_, ms)| may_be(*ms)).map(|(unit, _)| unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: Increment<'_> =
        Increment { namespace: "n", key: "k", delta: 1, at_ms: 61_000, id: None };

    fn violation(increment: Increment<'_>) -> Option<Violation> {
        let rules = Rules { max_future_s: 60, min_event_s: 2, ..Rules::default() };
        check(&rules, Some(10_000), &[SOUND, increment, SOUND], |_, _| {}).err()
    }

    #[test]
    fn a_violation_names_the_increment() {
        let long = "x".repeat(Fold::MAX_NAME_BYTES + 1);
        let reserved = Increment { namespace: RESERVED_NAMESPACE, ..SOUND };
        for (increment, reason) in [
            (Increment { key: &long, ..SOUND }, Reject::NameOutOfRange),
            (Increment { namespace: "", ..SOUND }, Reject::NameOutOfRange),
            (Increment { key: "", ..reserved }, Reject::NameOutOfRange),
            (reserved, Reject::ReservedNamespace),
            (Increment { at_ms: -1, ..SOUND }, Reject::EventTimeOutOfRange),
            (Increment { at_ms: 1_999, ..SOUND }, Reject::EventTimeOutOfRange),
            (Increment { at_ms: 70_001, ..SOUND }, Reject::FutureEventTime),
        ] {
            assert_eq!(violation(increment), Some(Violation { reason, increment: Some(1) }));
        }
        for at_ms in [2_000, 70_000] {
            assert_eq!(violation(Increment { at_ms, ..SOUND }), None);
        }
    }

    #[test]
    fn a_time_in_another_unit_is_told_by_when_it_would_be() {
        let rules = Rules { min_event_s: 946_684_800, ..Rules::default() };
        let unit = |at| rules.seeming_unit(at, Some(1_800_000_000_000));
        assert_eq!(unit(1_764_288_000), Some("seconds"));
        assert_eq!(unit(1_764_288_000_000_000), Some("microseconds"));
        assert_eq!(unit(1_764_288_000_000_000_000), Some("nanoseconds"));
        for at in [0, -1, 5, i64::MAX, i64::MIN] {
            assert_eq!(unit(at), None, "{at}");
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_so_for_all_its_increments() {
        let long = "x".repeat(4000);
        let many = vec![Increment { key: &long, ..SOUND }; 2000];
        let mut buckets = Vec::new();
        let checked = check(&Rules::default(), None, &many, |_, bucket| buckets.push(bucket));
        assert_eq!(checked, Err(Violation { reason: Reject::TooLarge, increment: None }));
        assert_eq!(buckets, [60; 2000]);
    }

    #[test]
    fn a_name_says_what_is_wrong_with_it() {
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert_eq!(check_name(&"x".repeat(4097)), Err(NameError::TooLong { bytes: 4097 }));
        assert_eq!(check_name(RESERVED_NAMESPACE), Ok(()));
        assert_eq!(check_namespace(RESERVED_NAMESPACE), Err(NameError::Reserved));
    }
}
