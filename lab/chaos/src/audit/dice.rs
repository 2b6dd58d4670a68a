use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Numbers that look random and are a function of the seed, the stream and the number drawn for.
pub(super) fn dice(seed: u64, stream: u32, number: u32) -> ChaCha8Rng {
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    dice.set_stream(u64::from(stream) << 32 | u64::from(number));
    dice
}
