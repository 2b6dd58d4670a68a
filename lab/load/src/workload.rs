//! What is counted: a table of keys, and which of them comes next.
//!
//! Both are made before the first increment is sent, so that sending costs a table's look-up.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Keys have the form `user:00000000:views`.
const KEY_BYTES: usize = 19;
/// Eight digits, so no more keys than that.
pub(crate) const MAX_KEYS: u32 = 100_000_000;
/// No divisor in common with [`MAX_KEYS`], so every number has another: popular keys are not
/// neighbours in sorted order.
const SCRAMBLE: u64 = 61_803_399;

/// Picks are repeated after so many: several times the keys, within these bounds.
const MIN_PICKS: usize = 1 << 20;
const MAX_PICKS: usize = 1 << 24;
/// A zipf pick is a search, so there are fewer.
const MAX_ZIPF_PICKS: usize = 1 << 22;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Distribution {
    /// The n-th key comes 1/n times as often as the first.
    Zipf,
    Uniform,
}

pub struct Workload {
    namespaces: Vec<String>,
    /// All keys, one after the other.
    keys: String,
    picks: Vec<u32>,
}

impl Workload {
    /// # Panics
    /// If there are no keys or namespaces, or more keys than [`MAX_KEYS`].
    pub fn new(keys: u32, namespaces: u32, distribution: Distribution, seed: u64) -> Workload {
        assert!((1..=MAX_KEYS).contains(&keys) && namespaces > 0);
        let mut text = String::with_capacity(keys as usize * KEY_BYTES);
        for number in 0..u64::from(keys) {
            let scrambled = number * SCRAMBLE % u64::from(MAX_KEYS);
            text.push_str(&format!("user:{scrambled:08}:views"));
        }
        Workload {
            namespaces: (0..namespaces).map(|number| format!("ns-{number:03}")).collect(),
            keys: text,
            picks: picks(keys, distribution, &mut ChaCha8Rng::seed_from_u64(seed)),
        }
    }

    pub fn keys(&self) -> usize {
        self.keys.len() / KEY_BYTES
    }

    /// Which key the increment of this number is of.
    #[inline]
    pub fn pick(&self, number: u64) -> usize {
        self.picks[number as usize & (self.picks.len() - 1)] as usize
    }

    #[inline]
    pub fn name(&self, key: usize) -> (&str, &str) {
        let at = key * KEY_BYTES;
        (&self.namespaces[key % self.namespaces.len()], &self.keys[at..at + KEY_BYTES])
    }
}

fn picks(keys: u32, distribution: Distribution, random: &mut impl Rng) -> Vec<u32> {
    let count = (keys as usize * 4).next_power_of_two();
    match distribution {
        Distribution::Uniform => {
            (0..count.clamp(MIN_PICKS, MAX_PICKS)).map(|_| random.random_range(0..keys)).collect()
        }
        Distribution::Zipf => {
            let mut weight = 0.0;
            let below: Vec<f64> = (1..=keys)
                .map(|rank| {
                    weight += 1.0 / f64::from(rank);
                    weight
                })
                .collect();
            let last = keys - 1;
            (0..count.clamp(MIN_PICKS, MAX_ZIPF_PICKS))
                .map(|_| {
                    let at = random.random::<f64>() * weight;
                    (below.partition_point(|end| *end <= at) as u32).min(last)
                })
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn shares(distribution: Distribution) -> Vec<f64> {
        let workload = Workload::new(100, 7, distribution, 1);
        let mut counts = vec![0u32; workload.keys()];
        let picks = 1u32 << 20;
        for number in 0..u64::from(picks) {
            counts[workload.pick(number)] += 1;
        }
        counts.iter().map(|count| f64::from(*count) / f64::from(picks)).collect()
    }

    #[test]
    fn a_zipf_key_comes_as_often_as_its_rank_says() {
        let harmonic: f64 = (1..=100).map(|rank| 1.0 / f64::from(rank)).sum();
        for (key, share) in shares(Distribution::Zipf).iter().enumerate() {
            let expected = 1.0 / (key + 1) as f64 / harmonic;
            assert!(
                (share - expected).abs() < 0.1 * expected,
                "key {key}: {share}, not {expected}"
            );
        }
    }

    #[test]
    fn uniform_keys_come_equally_often() {
        assert!(shares(Distribution::Uniform).iter().all(|share| (share - 0.01).abs() < 0.001));
    }

    #[test]
    fn every_key_has_a_name_of_its_own() {
        let workload = Workload::new(50_000, 3, Distribution::Uniform, 1);
        let names: HashSet<_> = (0..workload.keys()).map(|key| workload.name(key)).collect();
        assert_eq!(names.len(), 50_000);
        assert_eq!(workload.name(0), ("ns-000", "user:00000000:views"));
        assert_eq!(workload.name(1), ("ns-001", "user:61803399:views"));
    }

    #[test]
    fn a_seed_gives_the_same_picks_again() {
        let picks = |seed| Workload::new(1000, 1, Distribution::Zipf, seed).picks;
        assert_eq!(picks(7), picks(7));
        assert_ne!(picks(7), picks(8));
    }
}
