use std::fmt;
use std::sync::Arc;

/// A counter's name: namespace and key in one allocation, shared by everything that keeps it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Counter {
    text: Arc<str>,
    /// Where the namespace ends, so that no two names are alike, whatever they contain.
    namespace_bytes: u32,
}

impl Counter {
    pub(crate) fn new(namespace: &str, key: &str) -> Counter {
        let namespace_bytes = u32::try_from(namespace.len()).expect("a namespace is shorter than 4 GiB");
        Counter { text: [namespace, key].concat().into(), namespace_bytes }
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.text[..self.namespace_bytes as usize]
    }

    pub(crate) fn key(&self) -> &str {
        &self.text[self.namespace_bytes as usize..]
    }

    /// What the name takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.namespace(), self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_gives_back_its_parts_and_no_two_are_alike() {
        let counter = Counter::new("nämespace", "k/\0ey");
        assert_eq!((counter.namespace(), counter.key()), ("nämespace", "k/\0ey"));
        assert_eq!(Counter::new("a", "bc"), Counter::new("a", "bc"));
        assert_ne!(Counter::new("a", "bc"), Counter::new("ab", "c"));
    }
}
