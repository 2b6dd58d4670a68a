//! Random choices from a seed, so that a failed test can be thrown again.

/// SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0..sides.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        (self.bits() % sides as u64) as usize
    }

    /// Small and large alike, the extremes included.
    pub(crate) fn long(&mut self) -> i64 {
        match self.roll(16) {
            0 => i64::MIN,
            1 => i64::MAX,
            _ => {
                let shift = self.roll(64);
                self.bits().cast_signed() >> shift
            }
        }
    }

    /// Letters of one to four bytes, the separator of a fingerprint's parts among them; sometimes a
    /// long text.
    pub(crate) fn text(&mut self) -> String {
        const LETTERS: [char; 7] = ['a', 'Z', ':', '\'', 'ß', '計', '🐙'];
        let most = if self.roll(8) == 0 { 900 } else { 12 };
        (0..=self.roll(most)).map(|_| LETTERS[self.roll(LETTERS.len())]).collect()
    }
}
