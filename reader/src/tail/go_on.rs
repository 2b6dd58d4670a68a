//! Where a partition goes on from after its tail broke: pure, so that every case can be tried.
//!
//! ```text
//!  ClickHouse further than the tail         from there: it has taken what the tail could not
//!  both at one offset, and they disagree    from ClickHouse's position
//!  the chain broke, or the log was cut off  once from ClickHouse's position, if Kafka has that:
//!                                           the tail may hold what Kafka lost
//!  else                                     from the tail once more
//! ```

use tally_counts::StoredOffsets;

use crate::counter_memory::Broken;
use crate::starting_point::first_offset;

/// What is read next, and what the memory has to be told first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GoOn {
    /// ClickHouse's position, where the partition begins anew from there.
    pub(crate) restart: Option<StoredOffsets>,
    /// The offset of `deltas`.
    pub(crate) offset: i64,
}

/// `has_restarted`: whether the partition began anew for this trouble before, which did not help.
pub(crate) fn go_on(
    partition: usize,
    broken: &Broken,
    has_restarted: bool,
    tail: StoredOffsets,
    stored: StoredOffsets,
    (low, high): (i64, i64),
) -> Result<GoOn, Broken> {
    let is_ahead = stored.deltas > tail.deltas;
    let disagrees = stored.deltas == tail.deltas && stored.increments != tail.increments;
    let is_doubtful =
        matches!(broken, Broken::Chain { .. } | Broken::Disagrees { .. }) && !has_restarted;
    let goes_back = stored.deltas < tail.deltas && stored.deltas >= low;
    let restart = is_ahead || disagrees || (goes_back && (is_doubtful || tail.deltas > high));
    let restart = restart.then_some(stored);
    let offset = first_offset(partition, restart.unwrap_or(tail), (low, high))?;
    Ok(GoOn { restart, offset })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tally_counts::ChainError;

    use super::*;

    fn at(deltas: i64) -> StoredOffsets {
        StoredOffsets { deltas, increments: deltas * 10 }
    }

    fn hole() -> Broken {
        let source = ChainError::Hole { expected: 50, from: 60 };
        Broken::Chain { partition: 0, offset: 5, source }
    }

    fn damaged() -> Broken {
        Broken::Undecodable { partition: 0, offset: 5, reason: "cut".to_owned() }
    }

    #[test]
    fn a_store_that_is_further_is_where_the_partition_goes_on() {
        for broken in [hole(), damaged()] {
            let next = go_on(0, &broken, true, at(5), at(9), (0, 12));
            assert_eq!(next, Ok(GoOn { restart: Some(at(9)), offset: 9 }));
        }
        let behind_retention = go_on(0, &hole(), false, at(5), at(9), (7, 12));
        assert_eq!(behind_retention, Ok(GoOn { restart: Some(at(9)), offset: 9 }));
    }

    #[test]
    fn a_damaged_batch_is_read_again_and_what_was_counted_stays() {
        let next = go_on(0, &damaged(), false, at(5), at(3), (0, 12));
        assert_eq!(next, Ok(GoOn { restart: None, offset: 5 }));
    }

    #[test]
    fn a_broken_chain_is_read_again_from_the_stores_position_once() {
        let next = |has_restarted, low| go_on(0, &hole(), has_restarted, at(5), at(3), (low, 12));
        assert_eq!(next(false, 0), Ok(GoOn { restart: Some(at(3)), offset: 3 }));
        assert_eq!(next(true, 0), Ok(GoOn { restart: None, offset: 5 }));
        assert_eq!(
            next(false, 4),
            Ok(GoOn { restart: None, offset: 5 }),
            "Kafka has lost offset 3"
        );
    }

    #[test]
    fn a_store_that_disagrees_at_the_tail_is_believed() {
        let stored = StoredOffsets { increments: 49, ..at(5) };
        let next = go_on(0, &damaged(), true, at(5), stored, (0, 12));
        assert_eq!(next, Ok(GoOn { restart: Some(stored), offset: 5 }));
    }

    #[test]
    fn a_log_that_cannot_be_what_comes_next_keeps_the_partition_standing() {
        let gone = go_on(0, &hole(), false, at(0), at(0), (7, 12));
        assert_eq!(gone, Err(Broken::Log { partition: 0, next: 0, low: 7, high: 12 }));
        let cut = go_on(0, &hole(), false, at(15), at(14), (0, 12));
        assert_eq!(cut, Err(Broken::Log { partition: 0, next: 14, low: 0, high: 12 }));
        let cut = go_on(0, &damaged(), true, at(15), at(11), (0, 12));
        assert_eq!(cut, Ok(GoOn { restart: Some(at(11)), offset: 11 }));
    }

    proptest! {
        /// Whatever is read next, Kafka has it or will have it next, and it is not before what the
        /// memory then includes.
        #[test]
        fn what_is_read_next_is_in_the_log_and_never_counted_already(
            (tail, stored, low, length) in (0i64..20, 0i64..20, 0i64..20, 0i64..20),
            has_restarted: bool,
        ) {
            let (tail, stored, bounds) = (at(tail), at(stored), (low, low + length));
            for broken in [hole(), damaged()] {
                match go_on(0, &broken, has_restarted, tail, stored, bounds) {
                    Ok(GoOn { restart, offset }) => {
                        prop_assert!((bounds.0..=bounds.1).contains(&offset));
                        prop_assert!(offset >= restart.unwrap_or(tail).deltas);
                    }
                    Err(broken) => {
                        let is_log = matches!(broken, Broken::Log { .. });
                        prop_assert!(is_log);
                    }
                }
            }
        }
    }
}
