//! The deltas of one batch, kept without an allocation for each.
//!
//! ```text
//!  hashes   h0 h1 h2 …            what a search runs over, mostly without a look at the rest
//!  rows     r0 r1 r2 …            bucket, sum, events, and where the name ends
//!  names    ns‖key ns‖key …       one text
//! ```

use crate::counter::{Name, NameHash, Named};

/// What a counter gained in one batch and bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delta<'a> {
    pub(crate) name: Name<'a>,
    pub(crate) bucket_s: u32,
    pub(crate) sum: i64,
    pub(crate) events: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Deltas {
    hashes: Box<[NameHash]>,
    rows: Box<[Row]>,
    names: Box<str>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    name_end: u32,
    namespace_bytes: u32,
    bucket_s: u32,
    sum: i64,
    events: i64,
}

/// Takes the deltas of a batch one by one.
pub(crate) struct Packer {
    hashes: Vec<NameHash>,
    rows: Vec<Row>,
    names: String,
}

impl Packer {
    pub(crate) fn with_room(deltas: usize, names_bytes: usize) -> Packer {
        Packer {
            hashes: Vec::with_capacity(deltas),
            rows: Vec::with_capacity(deltas),
            names: String::with_capacity(names_bytes),
        }
    }

    pub(crate) fn push(&mut self, delta: Delta<'_>) {
        let Delta { name, bucket_s, sum, events } = delta;
        self.names.push_str(name.namespace());
        self.names.push_str(name.key());
        let [name_end, namespace_bytes] = [self.names.len(), name.namespace().len()]
            .map(|bytes| u32::try_from(bytes).expect("a batch is shorter than 4 GiB"));
        self.hashes.push(name.name_hash());
        self.rows.push(Row { name_end, namespace_bytes, bucket_s, sum, events });
    }

    pub(crate) fn finish(self) -> Deltas {
        let Packer { hashes, rows, names } = self;
        Deltas { hashes: hashes.into(), rows: rows.into(), names: names.into() }
    }
}

impl Deltas {
    /// What they take in memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Deltas>()
            + size_of_val(&*self.hashes)
            + size_of_val(&*self.rows)
            + self.names.len()
    }

    pub(crate) fn hashes(&self) -> &[NameHash] {
        &self.hashes
    }

    pub(crate) fn at(&self, index: usize) -> Delta<'_> {
        let Row { name_end, namespace_bytes, bucket_s, sum, events } = self.rows[index];
        let name_start = index.checked_sub(1).map_or(0, |before| self.rows[before].name_end);
        let name = &self.names[name_start as usize..name_end as usize];
        let (namespace, key) = name.split_at(namespace_bytes as usize);
        Delta { name: Name::hashed(self.hashes[index], namespace, key), bucket_s, sum, events }
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Delta<'_>> {
        (0..self.rows.len()).map(|index| self.at(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_come_back_as_they_were_pushed() {
        let pushed = [("nä", "k"), ("", "ämekey"), ("n", ""), ("", ""), ("nä", "k")].map(
            |(namespace, key)| Delta {
                name: Name::new(namespace, key),
                bucket_s: u32::MAX,
                sum: i64::MIN,
                events: namespace.len() as i64,
            },
        );
        let mut packer = Packer::with_room(0, 0);
        pushed.into_iter().for_each(|delta| packer.push(delta));
        let deltas = packer.finish();
        assert!(deltas.iter().eq(pushed));
        assert_eq!(deltas.hashes()[0], deltas.hashes()[4]);
    }

    #[test]
    fn only_what_is_there_takes_memory_whatever_room_was_made() {
        let mut packer = Packer::with_room(100, 1000);
        packer.push(Delta { name: Name::new("ns", "key"), bucket_s: 0, sum: 1, events: 1 });
        assert_eq!(packer.finish().bytes(), size_of::<Deltas>() + 4 + 32 + 5, "hash, row, name");
    }
}
