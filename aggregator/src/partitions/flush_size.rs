//! How many bytes a flush may hold: fewer after one that took all of a transaction's time, more
//! again after those that got through with ease. No I/O, and no clock of its own.
//!
//! A transaction has a time within which its records must be written. What does not get through
//! within it, over a slow link or under a quota, is aborted and read again. A flush of the same
//! size would be aborted alike, for ever.

use std::time::Duration;

/// The least that flushes are cut down to. A single message is never cut, so that a flush of one
/// long message may hold more.
const LEAST_BYTES: usize = 16 << 10;
/// A flush that took no longer than this leaves room for the next one to be half as long again. A
/// producer gives a connection up that has been silent for four seconds, so that half of that is
/// the most that is certain to get through.
const EASY: Duration = Duration::from_secs(2);

/// The most bytes of all sums and rejected messages that a flush holds, encoded.
pub(crate) struct FlushSize {
    /// As configured.
    most: usize,
    now: usize,
}

impl FlushSize {
    pub(crate) fn new(most: usize) -> FlushSize {
        FlushSize { most, now: most }
    }

    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.now
    }

    #[inline]
    pub(crate) fn is_reduced(&self) -> bool {
        self.now < self.most
    }

    /// A flush that held so many bytes did not get through in time: the next ones hold half of
    /// that. Returns whether that is fewer than before.
    pub(crate) fn reduce(&mut self, held: usize) -> bool {
        let before = self.now;
        self.now = (self.now.min(held) / 2).max(LEAST_BYTES).min(before);
        self.now < before
    }

    /// A flush that held so many bytes committed within this time. Returns whether the next ones
    /// may hold as much as configured again.
    pub(crate) fn grow(&mut self, held: usize, took: Duration) -> bool {
        // A short flush says nothing about a long one.
        let is_telling = held >= self.now / 2 && took <= EASY;
        if !self.is_reduced() || !is_telling {
            return false;
        }
        self.now = (self.now + self.now / 2).min(self.most);
        !self.is_reduced()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1 << 20;
    const SLOW: Duration = Duration::from_secs(4);

    #[test]
    fn what_did_not_get_through_is_halved_down_to_a_floor() {
        let mut size = FlushSize::new(MOST);
        assert!(size.reduce(600_000));
        assert_eq!(size.bytes(), 300_000);
        // A long message may make a flush longer than it should be.
        assert!(size.reduce(900_000));
        assert_eq!(size.bytes(), 150_000);
        assert!(size.reduce(100));
        assert_eq!(size.bytes(), LEAST_BYTES);
        assert!(!size.reduce(100));
        assert_eq!(size.bytes(), LEAST_BYTES);
    }

    #[test]
    fn less_than_the_floor_stays_as_it_is_configured() {
        let mut size = FlushSize::new(1500);
        assert!(!size.reduce(1500));
        assert_eq!((size.bytes(), size.is_reduced()), (1500, false));
    }

    #[test]
    fn only_long_flushes_that_were_quick_let_the_next_ones_grow() {
        let mut size = FlushSize::new(MOST);
        size.reduce(400_000);
        assert!(!size.grow(200_000, SLOW) && !size.grow(1_000, EASY));
        assert_eq!(size.bytes(), 200_000);
        assert!(!size.grow(200_000, EASY));
        assert_eq!(size.bytes(), 300_000);
        let is_whole_again = (0..4).map(|_| size.grow(size.bytes(), EASY)).collect::<Vec<_>>();
        assert_eq!(is_whole_again, [false, false, false, true]);
        assert_eq!((size.bytes(), size.is_reduced()), (MOST, false));
        assert!(!size.grow(MOST, EASY), "it is said once");
    }
}
