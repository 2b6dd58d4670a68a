//! Random values from a seed that proptest gives.

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

    /// Small and large alike.
    pub(crate) fn long(&mut self) -> i64 {
        let shift = self.roll(64);
        self.bits().cast_signed() >> shift
    }

    pub(crate) fn int(&mut self) -> i32 {
        let shift = self.roll(32);
        (self.bits() as u32).cast_signed() >> shift
    }

    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        (0..self.roll(9)).map(|_| self.bits() as u8).collect()
    }

    /// Sometimes long enough for a length of two bytes.
    pub(crate) fn text(&mut self) -> String {
        const LETTERS: [char; 6] = ['a', ':', '\0', 'ß', '計', '🐙'];
        let most = if self.roll(8) == 0 { 90 } else { 9 };
        (0..self.roll(most)).map(|_| LETTERS[self.roll(LETTERS.len())]).collect()
    }
}
