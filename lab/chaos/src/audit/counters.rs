//! The counters that the load writes: a few of a namespace that is only ever read and added to, and
//! some thousands of which few get most.

use rand::Rng;

/// The namespace that reads are checked on: its counters only grow, and each of its increments
/// counts once.
pub(super) const READS: &str = "reads";
/// How many counters [`READS`] has. They come first.
pub(super) const READ_COUNTERS: u32 = 64;

const PAGES: usize = 2_500;
const ACCOUNTS: usize = 1_400;
/// How many of a hundred increments are of [`READS`].
const READS_PERCENT: u64 = 10;
/// Deltas are so large that no loss and no doubling is made up for by others.
const LARGEST_DELTA: u64 = 1 << 40;

/// Names that a careless encoder, query or parser would trip over.
const ODD_KEYS: [&str; 8] =
    ["a\tb", "line\nbreak", "it's", "back\\slash", "\"quoted\"", "ключ", "键/值?&=%20", " blank "];

pub(super) struct Counters {
    names: Vec<(&'static str, String)>,
    /// The share of each counter beyond those of [`READS`], together with all before it.
    shares: Vec<f64>,
}

impl Counters {
    pub(super) fn new() -> Counters {
        let mut names: Vec<(&'static str, String)> =
            (0..READ_COUNTERS).map(|n| (READS, format!("read-{n}"))).collect();
        names.extend(ODD_KEYS.map(|key| ("odd", key.to_owned())));
        names.extend((0..PAGES).map(|n| ("pages", format!("page:{n}"))));
        names.extend((0..ACCOUNTS).map(|n| ("money", format!("account/{n:05}"))));
        let mut sum = 0.0;
        let mut shares: Vec<f64> = (READ_COUNTERS as usize..names.len())
            .map(|n| {
                sum += 1.0 / (n - READ_COUNTERS as usize + 1) as f64;
                sum
            })
            .collect();
        shares.iter_mut().for_each(|share| *share /= sum);
        Counters { names, shares }
    }

    pub(super) fn name(&self, counter: u32) -> (&'static str, &str) {
        let (namespace, key) = &self.names[counter as usize];
        (namespace, key)
    }

    /// A counter, and what is added to it.
    pub(super) fn pick(&self, dice: &mut impl Rng) -> (u32, i64) {
        let amount = (1 + dice.random_range(0..LARGEST_DELTA)).cast_signed();
        if dice.random_range(0..100) < READS_PERCENT {
            return (dice.random_range(0..READ_COUNTERS), amount);
        }
        let share = dice.random::<f64>();
        let rank = self.shares.partition_point(|upto| *upto <= share).min(self.shares.len() - 1);
        let counter = READ_COUNTERS + rank as u32;
        let negative_percent = if self.name(counter).0 == "money" { 50 } else { 5 };
        (counter, if dice.random_range(0..100) < negative_percent { -amount } else { amount })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_grow_and_all_others_have_their_share() {
        let counters = Counters::new();
        let mut dice = crate::audit::dice::dice(3, 0, 0);
        let picks: Vec<_> = (0..20_000).map(|_| counters.pick(&mut dice)).collect();
        let reads: Vec<_> = picks.iter().filter(|(counter, _)| *counter < READ_COUNTERS).collect();
        assert!((1_700..2_300).contains(&reads.len()), "{}", reads.len());
        assert!(
            reads.iter().all(|(counter, delta)| counters.name(*counter).0 == READS && *delta > 0)
        );
        let top = picks.iter().filter(|(counter, _)| *counter == READ_COUNTERS).count();
        assert!((1_500..2_600).contains(&top), "the first gets one in nine: {top}");
        assert!(picks.iter().any(|(_, delta)| *delta < 0));
    }
}
