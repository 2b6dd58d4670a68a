//! A counter's name: owned by whoever keeps it ([`Counter`]), or as it stands in somebody else's
//! text ([`Name`]).
//!
//! ```text
//!  namespace, key ──Name::new──► Name ──to_counter──► Counter
//!                                  └── both are `dyn Named`: either finds a counter in a map
//! ```
//!
//! A name's hash is computed once and goes along with it. It depends on the process, so that nobody
//! can choose names that collide.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameHash(u32);

impl NameHash {
    fn of(namespace: &str, key: &str) -> NameHash {
        let mut hasher =
            SeedableRandomState::with_seed(0, SharedSeed::global_random()).build_hasher();
        hasher.write(namespace.as_bytes());
        hasher.write(key.as_bytes());
        hasher.write_usize(namespace.len());
        NameHash(hasher.finish() as u32)
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

/// A name that is read where it stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name<'a> {
    hash: NameHash,
    namespace: &'a str,
    key: &'a str,
}

impl<'a> Name<'a> {
    pub(crate) fn new(namespace: &'a str, key: &'a str) -> Name<'a> {
        Name::hashed(NameHash::of(namespace, key), namespace, key)
    }

    /// A name whose hash was kept.
    pub(crate) fn hashed(hash: NameHash, namespace: &'a str, key: &'a str) -> Name<'a> {
        Name { hash, namespace, key }
    }

    pub(crate) fn namespace(self) -> &'a str {
        self.namespace
    }

    pub(crate) fn key(self) -> &'a str {
        self.key
    }

    fn to_counter(self) -> Counter {
        let namespace_bytes =
            u32::try_from(self.namespace.len()).expect("a namespace is shorter than 4 GiB");
        Counter {
            hash: self.hash,
            namespace_bytes,
            text: [self.namespace, self.key].concat().into(),
        }
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.namespace, self.key)
    }
}

/// A name in one allocation, shared by everything that keeps it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Counter {
    hash: NameHash,
    /// Where the namespace ends, so that no two names are alike, whatever they contain.
    namespace_bytes: u32,
    text: Arc<str>,
}

impl Counter {
    pub(crate) fn new(namespace: &str, key: &str) -> Counter {
        Name::new(namespace, key).to_counter()
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.text[..self.namespace_bytes as usize]
    }

    /// How long namespace and key are together.
    pub(crate) fn name_bytes(&self) -> usize {
        self.text.len()
    }

    pub(crate) fn key(&self) -> &str {
        &self.text[self.namespace_bytes as usize..]
    }
}

impl Hash for Counter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.hash.0);
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

/// Whatever has a name. As a trait object it is what a map of counters can be asked by without
/// owning one.
pub(crate) trait Named {
    fn name_hash(&self) -> NameHash;
    fn name(&self) -> Name<'_>;
}

impl Named for Name<'_> {
    fn name_hash(&self) -> NameHash {
        self.hash
    }

    fn name(&self) -> Name<'_> {
        *self
    }
}

impl Named for Counter {
    fn name_hash(&self) -> NameHash {
        self.hash
    }

    fn name(&self) -> Name<'_> {
        Name::hashed(self.hash, self.namespace(), self.key())
    }
}

impl Hash for dyn Named + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.name_hash().0);
    }
}

impl PartialEq for dyn Named + '_ {
    fn eq(&self, other: &Self) -> bool {
        // A counter's text is elsewhere in memory: it is looked at last.
        self.name_hash() == other.name_hash() && self.name() == other.name()
    }
}

impl Eq for dyn Named + '_ {}

impl<'a> Borrow<dyn Named + 'a> for Counter {
    fn borrow(&self) -> &(dyn Named + 'a) {
        self
    }
}

#[cfg(test)]
mod tests {
    use hashbrown::HashMap;
    use lru::LruCache;

    use super::*;

    #[test]
    fn a_counter_gives_back_its_parts_and_no_two_are_alike() {
        let counter = Counter::new("nämespace", "k/\0ey");
        assert_eq!((counter.namespace(), counter.key()), ("nämespace", "k/\0ey"));
        assert_eq!(Counter::new("a", "bc"), Counter::new("a", "bc"));
        assert_ne!(Counter::new("a", "bc"), Counter::new("ab", "c"));
        assert_ne!(NameHash::of("a", "bc"), NameHash::of("ab", "c"));
    }

    #[test]
    fn a_cache_of_counters_is_asked_by_a_name() {
        let mut cache = LruCache::unbounded();
        cache.put(Counter::new("a", "bc"), 1);
        cache.put(Counter::new("ab", "c"), 2);
        let ask = |namespace, key| cache.peek(&Name::new(namespace, key) as &dyn Named).copied();
        assert_eq!((ask("a", "bc"), ask("ab", "c"), ask("abc", "")), (Some(1), Some(2), None));
    }

    /// Two names with one hash are told apart by their texts.
    #[test]
    fn names_that_collide_are_two_names() {
        let hash = NameHash(7);
        let mut map = HashMap::new();
        map.insert(Name::hashed(hash, "a", "b").to_counter(), 1);
        map.insert(Name::hashed(hash, "a", "c").to_counter(), 2);
        assert_eq!(map[&Name::hashed(hash, "a", "b").to_counter()], 1);
        assert_eq!(map[&Name::hashed(hash, "a", "c").to_counter()], 2);
    }
}
