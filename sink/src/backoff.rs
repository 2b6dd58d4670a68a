//! How long to wait before a block is sent again.

use std::time::Duration;

use crate::answer::Class;

/// Waits that double up to a limit, by the class of what went wrong, and that differ from partition
/// to partition, so that a store that recovers is not asked by all of them at once.
pub(crate) struct Backoff {
    seed: u64,
    class: Class,
    tries: u32,
}

impl Backoff {
    pub(crate) fn new(partition: i32) -> Backoff {
        Backoff { seed: u64::from(partition.unsigned_abs()), class: Class::Uncertain, tries: 0 }
    }

    /// The wait after one more failure, and whether it is the first of its class.
    pub(crate) fn next(&mut self, class: Class) -> (Duration, bool) {
        if self.class != class {
            (self.class, self.tries) = (class, 0);
        }
        let is_first = self.tries == 0;
        let (first, last) = limits(class);
        let doubled = first.saturating_mul(1 << self.tries.min(16)).min(last);
        self.tries = self.tries.saturating_add(1);
        let share = mix(self.seed ^ u64::from(self.tries) << 32) % 512;
        // Between three quarters and five quarters.
        (doubled.mul_f64((768 + share) as f64 / 1024.0), is_first)
    }
}

fn limits(class: Class) -> (Duration, Duration) {
    let (first_ms, last_ms) = match class {
        Class::Fence | Class::Uncertain => (50, 5_000),
        Class::Overloaded => (500, 30_000),
        Class::Unfit => (2_000, 30_000),
    };
    (Duration::from_millis(first_ms), Duration::from_millis(last_ms))
}

/// SplitMix64's last step.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_of_their_class_and_begin_again_with_another() {
        let mut backoff = Backoff::new(3);
        for class in [Class::Overloaded, Class::Uncertain, Class::Unfit] {
            let (first, last) = limits(class);
            for tries in 0..40 {
                let whole = first.saturating_mul(1 << tries.min(16)).min(last);
                let (wait, is_first) = backoff.next(class);
                assert_eq!(is_first, tries == 0);
                assert!(
                    wait >= whole.mul_f64(0.75) && wait < whole.mul_f64(1.25),
                    "{class:?} {tries} {wait:?}"
                );
            }
        }
    }

    #[test]
    fn partitions_do_not_wait_alike() {
        let waits: Vec<Duration> =
            (0..8).map(|p| Backoff::new(p).next(Class::Overloaded).0).collect();
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }
}
