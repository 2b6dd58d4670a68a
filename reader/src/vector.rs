use tally_counts::{Position, StoredOffsets};

/// How far every partition is included, by partition number. A partition beyond its end is included
/// up to its beginning, as one is that was added to the topic and has no counts yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vector(Vec<StoredOffsets>);

impl Vector {
    pub(crate) fn new(places: Vec<StoredOffsets>) -> Vector {
        Vector(places)
    }

    pub(crate) fn partitions(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn at(&self, partition: usize) -> StoredOffsets {
        self.0.get(partition).copied().unwrap_or_default()
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Vector>() + self.0.capacity() * size_of::<StoredOffsets>()
    }

    pub(crate) fn set(&mut self, partition: usize, place: StoredOffsets) {
        self.0[partition] = place;
    }

    /// Names at least as many partitions, those that are new at their beginning.
    pub(crate) fn grow(&mut self, partitions: usize) {
        self.0.resize(self.0.len().max(partitions), StoredOffsets::default());
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, StoredOffsets)> + '_ {
        self.0.iter().copied().enumerate()
    }

    /// Whether nothing in here is beyond `other`.
    pub(crate) fn is_within(&self, other: &Vector) -> bool {
        self.iter().all(|(partition, here)| here.deltas <= other.at(partition).deltas)
    }

    /// For each partition the further of the two.
    pub(crate) fn furthest(&self, other: &Vector) -> Vector {
        let further = |partition| {
            let (a, b) = (self.at(partition), other.at(partition));
            if a.deltas >= b.deltas { a } else { b }
        };
        Vector((0..self.0.len().max(other.0.len())).map(further).collect())
    }

    /// The position in `increments`, as answers give it.
    pub(crate) fn position(&self) -> Position {
        self.iter().map(|(p, place)| (number(p), place.increments)).collect()
    }
}

/// Kafka's number for a partition.
pub(crate) fn number(partition: usize) -> i32 {
    i32::try_from(partition).expect("Kafka counts partitions in 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_only_one_vector_names_is_at_its_beginning_in_the_other() {
        let vector = |places: &[i64]| {
            let place = |deltas: &i64| StoredOffsets { deltas: *deltas, increments: deltas * 10 };
            Vector::new(places.iter().map(place).collect())
        };
        let (old, new) = (vector(&[5, 7]), vector(&[4, 8, 2]));
        assert_eq!(old.furthest(&new), vector(&[5, 8, 2]));
        assert_eq!(new.furthest(&old), vector(&[5, 8, 2]));
        assert!(vector(&[5, 7, 0]).is_within(&old));
        assert!(!vector(&[5, 7, 1]).is_within(&old));
        assert!(old.is_within(&vector(&[5, 7, 1])));
    }
}
