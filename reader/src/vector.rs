use tally_counts::{Position, StoredOffsets};

/// How far every partition is included, by partition number.
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
        self.0[partition]
    }

    pub(crate) fn set(&mut self, partition: usize, place: StoredOffsets) {
        self.0[partition] = place;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, StoredOffsets)> + '_ {
        self.0.iter().copied().enumerate()
    }

    /// Whether nothing in here is beyond `other`.
    pub(crate) fn is_within(&self, other: &Vector) -> bool {
        self.0.iter().zip(&other.0).all(|(here, there)| here.deltas <= there.deltas)
    }

    /// For each partition the further of the two.
    pub(crate) fn furthest(&self, other: &Vector) -> Vector {
        let further =
            |(a, b): (&StoredOffsets, &StoredOffsets)| if a.deltas >= b.deltas { *a } else { *b };
        Vector(self.0.iter().zip(&other.0).map(further).collect())
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
