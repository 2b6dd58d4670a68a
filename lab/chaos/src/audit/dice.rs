//! Numbers that look random and are a function of the seed, the stream and the number drawn for.
//!
//! SplitMix64 (Steele, Lea and Flood, 2014): a few instructions a number, so that a message costs
//! next to nothing to make again when the log is audited.

pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64, stream: u64, number: u64) -> Dice {
        let mut dice = Dice(seed);
        for salt in [stream, number] {
            dice.0 = dice.roll() ^ salt;
        }
        dice
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// From 0 up to `end`, not included.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        let wide = u128::from(self.roll()) * u128::from(end);
        (wide >> 64) as u64
    }

    /// From 0 up to 1, not included.
    pub(super) fn unit(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A bijection in which every bit of the input reaches every bit of the output.
pub(super) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_each_stream_has_dice_of_its_own() {
        let first = |seed, stream, number| Dice::new(seed, stream, number).roll();
        assert_eq!(first(1, 2, 3), first(1, 2, 3));
        let others =
            [first(1, 2, 3), first(2, 2, 3), first(1, 3, 3), first(1, 2, 4), first(1, 3, 2)];
        for (i, one) in others.iter().enumerate() {
            assert!(!others[..i].contains(one));
        }
    }

    #[test]
    fn numbers_below_an_end_reach_all_of_it_and_not_more() {
        let mut dice = Dice::new(7, 0, 0);
        let mut seen = [0; 5];
        (0..5_000).for_each(|_| seen[dice.below(5) as usize] += 1);
        assert!(seen.iter().all(|times| (800..1_200).contains(times)), "{seen:?}");
    }
}
