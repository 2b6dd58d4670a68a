//! Which partition a gateway chooses for a request, as docs/format.md and the README say: murmur2
//! of the request's id, or of its one increment's counter and id, modulo the count of partitions.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::audit::codec::Increment;
use crate::audit::content::Content;

/// The partitions that a request may go to while their count is in that range.
pub(super) fn under_counts(content: &Content, counts: RangeInclusive<i32>) -> BTreeSet<i32> {
    let key = match (&content.batch.id, &content.batch.increments[..]) {
        (Some(id), _) => id.clone(),
        (None, [Increment { namespace, key, id: Some(id), .. }]) => {
            format!("{}:{namespace}{}:{key}{id}", namespace.len(), key.len())
        }
        // Nothing says where it goes.
        (None, _) => return BTreeSet::new(),
    };
    let hash = murmur2(key.as_bytes()) & i32::MAX.cast_unsigned();
    counts.map(|count| hash.cast_signed() % count).collect()
}

/// The variant of murmur2 that Kafka's Java clients have.
fn murmur2(text: &[u8]) -> u32 {
    const MIX: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ u32::try_from(text.len()).expect("a key is short");
    let mut words = text.chunks_exact(4);
    for word in words.by_ref() {
        let word = u32::from_le_bytes(word.try_into().expect("four bytes")).wrapping_mul(MIX);
        hash = hash.wrapping_mul(MIX) ^ (word ^ word >> 24).wrapping_mul(MIX);
    }
    let rest = words.remainder();
    for (place, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * place);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(MIX);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(MIX);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Kafka's own tests of its clients.
    #[test]
    fn murmur2_is_kafkas() {
        for (text, hash) in [("21", -973_932_308), ("foobar", -790_332_482), ("abc", 479_470_107)] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), hash, "{text}");
        }
    }
}
