//! Which partition an increment with an id goes to: its counter and its id say it alone, whatever
//! it travels with, so that it is recognised however a request is cut when it is sent again.
//!
//! ```text
//!  <bytes of namespace>:<namespace><bytes of key>:<key><id> ──murmur2──► partition
//! ```
//!
//! Kafka's own clients find the same partition for a record that has this text as its key: Java's
//! by themselves, librdkafka's with `partitioner=murmur2`.

use std::fmt::Write as _;
use std::num::NonZeroU32;

pub(crate) struct Partitioner {
    partitions: NonZeroU32,
    text: String,
}

impl Partitioner {
    pub(crate) fn new(partitions: NonZeroU32) -> Partitioner {
        Partitioner { partitions, text: String::new() }
    }

    /// The lengths keep apart what would be one text without them: the key `ab` with the id `c`,
    /// and the key `a` with the id `bc`.
    pub(crate) fn partition(&mut self, namespace: &str, key: &str, id: &str) -> i32 {
        self.text.clear();
        for name in [namespace, key] {
            write!(self.text, "{}:{name}", name.len()).expect("a string takes any text");
        }
        self.text.push_str(id);
        let hash = murmur2(self.text.as_bytes()) & 0x7fff_ffff;
        i32::try_from(hash % self.partitions).expect("the hash has 31 bits")
    }
}

/// Kafka's variant of murmur2: `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(bytes: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const FACTOR: u32 = 0x5bd1_e995;
    // As in Java, the length is taken modulo 2³².
    let mut hash = SEED ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(FACTOR);
        word ^= word >> 24;
        hash = hash.wrapping_mul(FACTOR) ^ word.wrapping_mul(FACTOR);
    }
    if !rest.is_empty() {
        let last = rest.iter().rev().fold(0, |last, byte| last << 8 | u32::from(*byte));
        hash = (hash ^ last).wrapping_mul(FACTOR);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(FACTOR);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own test, `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_is_kafkas() {
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), hash, "{text}");
        }
    }

    #[test]
    fn the_partition_is_that_of_a_record_with_the_documented_key() {
        let partitions = NonZeroU32::new(1009).unwrap();
        let mut partitioner = Partitioner::new(partitions);
        let key = "4:shop8:likes:42order-7/ß";
        let expected = (murmur2(key.as_bytes()) & 0x7fff_ffff) % partitions;
        let partition = partitioner.partition("shop", "likes:42", "order-7/ß");
        assert_eq!(partition.cast_unsigned(), expected);
        assert_ne!(partition, partitioner.partition("shop", "likes:4", "2order-7/ß"));
        assert_ne!(partition, partitioner.partition("sho", "plikes:42", "order-7/ß"));
    }
}
