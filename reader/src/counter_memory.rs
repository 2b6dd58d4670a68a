//! What the reader knows, without any I/O: the tail's position, the cached counters, the unstored
//! window.
//!
//! ```text
//!  a batch of the log ──apply──► tail ──► window   the deltas that a snapshot may lack
//!                                   └───► cache    each entry that lacks them
//!  a miss:  begin ──► query ──► snapshot (sums + vector) ──finish──► answer, and a cached entry
//!                                              + window from the vector on
//!  a hit:   recall ──► answer
//!  the ledger's positions ──learn──► floor, up to what every query in flight must have
//!  a partition goes on from elsewhere ──restart──► tail, window; the cache begins anew
//! ```
//!
//! A value is what the store had at the snapshot's vector V and, of each partition, every batch
//! from V on that was tailed. So it includes exactly what is before the further of V and the tail,
//! and its answer says so.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::slice;
use std::sync::Arc;

use hashbrown::HashMap;
use tally_counts::{ChainError, Position, StoredOffsets, check_chain, next_offset};

use crate::cache::{Cache, CacheLimits, Entry, Total};
use crate::counter::{Counter, Named};
use crate::vector::{Vector, number};
use crate::window::{Arrival, Sought, Window};

/// Why a partition's tail cannot go on. What it has counted stands, but what comes after is not
/// known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error(
        "deltas, partition {partition}, offset {offset}: \
         the batch does not follow the one before it: {source}"
    )]
    Chain { partition: i32, offset: i64, source: ChainError },
    #[error("deltas, partition {partition}, offset {offset}: {reason}")]
    Undecodable { partition: i32, offset: i64, reason: String },
    #[error(
        "deltas, partition {partition}, offset {offset}: the batch is not by this version's \
         schema, and the schema registry does not say by which: {reason}"
    )]
    UnknownSchema { partition: i32, offset: i64, reason: String },
    #[error(
        "deltas, partition {partition}: \
         offset {next} is to be read next, but Kafka has {low} up to {high}"
    )]
    Log { partition: i32, next: i64, low: i64, high: i64 },
    #[error(
        "deltas, partition {partition}: at offset {at} ClickHouse includes increments up to \
         {stored}, Kafka's batches up to {logged}"
    )]
    Disagrees { partition: i32, at: i64, stored: i64, logged: i64 },
    #[error("deltas, partition {partition}: Kafka's client does not read it: {reason}")]
    Unassigned { partition: i32, reason: String },
}

/// Why nothing of the log can be read any more, by this client.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("deltas cannot be read: {reason}")]
pub(crate) struct Unreadable {
    pub(crate) reason: String,
}

/// Why a snapshot gives no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// A replica that lags: another try may see more.
    #[error(
        "partition {partition}: the snapshot is at offset {at} of deltas, \
         but the store was at {floor} already"
    )]
    Behind { partition: i32, at: i64, floor: i64 },
    #[error(
        "partition {partition}: at offset {at} of deltas \
         the store includes increments up to {stored}, the log up to {logged}"
    )]
    Disagrees { partition: i32, at: i64, stored: i64, logged: i64 },
}

/// The sums of the counters that were asked for and have any, and the vector at which they were
/// read, in one scan.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) vector: Arc<Vector>,
    pub(crate) totals: HashMap<Counter, Total>,
}

/// What a query asks for: counters, or the buckets of one that start in a range of seconds since
/// 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted<'a> {
    Counters(&'a [Counter]),
    Buckets(&'a Counter, &'a Range<u64>),
}

/// The counters' totals, in the order asked for, all as of one position.
#[derive(Clone, Debug)]
pub(crate) struct TotalsAsOf {
    pub(crate) totals: Vec<Total>,
    pub(crate) as_of: Arc<Position>,
}

/// What the memory alone has to say.
#[derive(Debug)]
pub(crate) enum Recall {
    Found(TotalsAsOf),
    Missing(Vec<Counter>),
    /// Every counter is there, but they are ahead of the tail by different snapshots, so no one
    /// position holds for all.
    Apart,
}

/// Names a query that is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FlightId(u64);

/// The counters and the unstored deltas that are held in memory.
pub(crate) struct CounterMemory {
    tail: Vector,
    position: Arc<Position>,
    window: Window,
    cache: Cache,
    /// The furthest next offset of `deltas` that the store was seen at, by partition.
    known: Vec<i64>,
    /// For each query in flight, what was known as it began: its snapshot cannot be older.
    flights: BTreeMap<FlightId, Vec<i64>>,
    next_flight: FlightId,
    unreadable: Option<Arc<Unreadable>>,
}

impl CounterMemory {
    /// Starts where the store is.
    pub(crate) fn new(start: Vector, cached: CacheLimits) -> CounterMemory {
        CounterMemory {
            position: Arc::new(start.position()),
            window: Window::new(&start),
            cache: Cache::new(cached),
            known: start.iter().map(|(_, place)| place.deltas).collect(),
            flights: BTreeMap::new(),
            next_flight: FlightId(0),
            unreadable: None,
            tail: start,
        }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.tail.partitions()
    }

    pub(crate) fn tail(&self, partition: usize) -> StoredOffsets {
        self.tail.at(partition)
    }

    pub(crate) fn position(&self) -> &Arc<Position> {
        &self.position
    }

    pub(crate) fn entries(&self) -> usize {
        self.cache.len()
    }

    /// What the cached counters take.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.cache.bytes()
    }

    pub(crate) fn unstored_bytes(&self) -> usize {
        self.window.bytes()
    }

    /// What the window keeps of one partition.
    pub(crate) fn unstored_bytes_of(&self, partition: usize) -> usize {
        self.window.bytes_of(partition)
    }

    /// Whether a batch of `bytes` at `offset` fits into its partition's share of a window of
    /// `budget` bytes; one that need not be kept always does.
    pub(crate) fn has_room(
        &self,
        partition: usize,
        offset: i64,
        bytes: usize,
        budget: usize,
    ) -> bool {
        offset < self.window.floor(partition) || self.window.has_room(partition, bytes, budget)
    }

    /// Nothing is answered from now on.
    pub(crate) fn break_off(&mut self, unreadable: Arc<Unreadable>) {
        self.unreadable.get_or_insert(unreadable);
    }

    pub(crate) fn unreadable(&self) -> Option<&Arc<Unreadable>> {
        self.unreadable.as_ref()
    }

    /// The topic has at least as many partitions. Of one that is new nothing was counted in yet, so
    /// that everything in memory is as of its beginning.
    pub(crate) fn grow(&mut self, partitions: usize) {
        self.tail.grow(partitions);
        self.window.grow(partitions);
        self.known.resize(self.tail.partitions(), 0);
        self.position = Arc::new(self.tail.position());
    }

    /// The partition is read from `place` on, which is not where its tail is. No counter in memory
    /// includes exactly what is before it, so all of them are looked up anew.
    pub(crate) fn restart(&mut self, partition: usize, place: StoredOffsets) {
        self.tail.set(partition, place);
        self.window.restart(partition, place.deltas);
        self.cache.clear();
        self.position = Arc::new(self.tail.position());
    }

    /// Counts in the next batch of a partition.
    pub(crate) fn apply(&mut self, arrival: Arrival) -> Result<(), Broken> {
        let Arrival { partition, offset, from, to, .. } = arrival;
        let at = self.tail.at(partition);
        // The first batch of all begins wherever the log did.
        let expected = if at.deltas == 0 { from } else { at.increments };
        check_chain(expected, from, to).map_err(|source| Broken::Chain {
            partition: number(partition),
            offset,
            source,
        })?;
        for delta in arrival.deltas.iter() {
            self.cache.add(partition, offset, delta);
        }
        self.window.push(arrival);
        self.tail.set(partition, StoredOffsets { deltas: next_offset(offset), increments: to });
        self.position = Arc::new(self.tail.position());
        Ok(())
    }

    /// Answers from memory.
    pub(crate) fn recall(&mut self, counters: &[Counter]) -> Recall {
        let mut totals = Vec::with_capacity(counters.len());
        let mut missing = Vec::new();
        let mut read_at: Option<Option<Arc<Vector>>> = None;
        let mut together = true;
        for counter in counters {
            let Some(entry) = self.cache.get(counter) else {
                missing.push(counter.clone());
                continue;
            };
            entry.read_at.take_if(|vector| vector.is_within(&self.tail));
            let first = read_at.get_or_insert_with(|| entry.read_at.clone());
            together =
                together && same_position(&self.tail, first.as_ref(), entry.read_at.as_ref());
            totals.push(entry.total);
        }
        if !missing.is_empty() {
            return Recall::Missing(missing);
        }
        if !together {
            return Recall::Apart;
        }
        let as_of = match read_at.flatten() {
            Some(vector) => self.as_of(&vector),
            None => Arc::clone(&self.position),
        };
        Recall::Found(TotalsAsOf { totals, as_of })
    }

    /// A query is about to be sent.
    pub(crate) fn begin(&mut self) -> FlightId {
        let id = self.next_flight;
        self.next_flight = FlightId(id.0 + 1);
        self.flights.insert(id, self.known.clone());
        id
    }

    /// The query is done with, answered or not.
    pub(crate) fn end(&mut self, id: FlightId) {
        self.flights.remove(&id);
        self.trim();
    }

    /// The partitions of which the store, at the tail's own offset of `deltas`, has something else.
    pub(crate) fn disagreements(&self, vector: &Vector) -> Vec<(usize, Broken)> {
        let disagrees = |(p, tail): (usize, StoredOffsets)| {
            let (stored, logged) = (vector.at(p).increments, tail.increments);
            let (partition, at) = (number(p), tail.deltas);
            let is_so = vector.at(p).deltas == at && stored != logged;
            is_so.then_some((p, Broken::Disagrees { partition, at, stored, logged }))
        };
        self.tail.iter().filter_map(disagrees).collect()
    }

    /// The store was seen at these next offsets of `deltas`, by a query that has finished.
    pub(crate) fn learn(&mut self, vector: &Vector) {
        for (partition, known) in self.known.iter_mut().enumerate() {
            *known = (*known).max(vector.at(partition).deltas);
        }
        self.trim();
    }

    /// No snapshot to come is below what was known before its query began, so nothing below that is
    /// needed.
    fn trim(&mut self) {
        for (partition, known) in self.known.iter().enumerate() {
            // A flight that began before the partition was known may lack all of it.
            let at_start = |known: &Vec<i64>| known.get(partition).copied().unwrap_or(0);
            let floor = self.flights.values().map(at_start).fold(*known, i64::min);
            self.window.trim(partition, floor);
        }
    }

    /// Makes the snapshot of a query in flight whole, and answers from it. Counters are remembered,
    /// buckets are not.
    pub(crate) fn finish(
        &mut self,
        wanted: Wanted<'_>,
        snapshot: &Snapshot,
    ) -> Result<TotalsAsOf, SnapshotError> {
        self.check(&snapshot.vector)?;
        let (counters, buckets) = match wanted {
            Wanted::Counters(counters) => (counters, None),
            Wanted::Buckets(counter, buckets) => (slice::from_ref(counter), Some(buckets)),
        };
        let totals = self.whole(counters, buckets, snapshot);
        if buckets.is_none() {
            self.remember(counters, &totals, &snapshot.vector);
        }
        self.learn(&snapshot.vector);
        Ok(TotalsAsOf { totals, as_of: self.as_of(&snapshot.vector) })
    }

    /// What the snapshot has and what it lacks, of some buckets or of all.
    fn whole(
        &self,
        counters: &[Counter],
        buckets: Option<&Range<u64>>,
        snapshot: &Snapshot,
    ) -> Vec<Total> {
        // The scan gives a row for whatever has counts.
        let stored =
            |counter: &Counter| snapshot.totals.get(counter).copied().unwrap_or(Total::ZERO);
        let mut totals: Vec<Total> = counters.iter().map(stored).collect();
        let sought = Sought::new(counters);
        self.window.search(&sought, &snapshot.vector, |place, delta| {
            if buckets.is_none_or(|buckets| buckets.contains(&u64::from(delta.bucket_s))) {
                totals[place].add(delta.sum, delta.events);
            }
        });
        let total = |counter: &Counter| {
            totals[sought.place(counter.name()).expect("every counter is sought")]
        };
        counters.iter().map(total).collect()
    }

    fn remember(&mut self, counters: &[Counter], totals: &[Total], vector: &Arc<Vector>) {
        let read_at = (!vector.is_within(&self.tail)).then_some(vector);
        let share = read_at.map_or(0, |vector| vector.bytes() / counters.len().max(1));
        let vector_share = u32::try_from(share).expect("a vector is shorter than 4 GiB");
        for (counter, total) in counters.iter().zip(totals) {
            let entry = Entry { total: *total, read_at: read_at.cloned(), vector_share };
            self.cache.put(counter.clone(), entry);
        }
    }

    /// Whether a snapshot at `vector` can be made whole.
    fn check(&self, vector: &Vector) -> Result<(), SnapshotError> {
        for p in 0..self.tail.partitions().max(vector.partitions()) {
            let (stored, tail) = (vector.at(p), self.tail.at(p));
            let (floor, partition) = (self.window.floor(p), number(p));
            if stored.deltas < floor {
                return Err(SnapshotError::Behind { partition, at: stored.deltas, floor });
            }
            if stored.deltas == tail.deltas && stored.increments != tail.increments {
                let (stored, logged) = (stored.increments, tail.increments);
                return Err(SnapshotError::Disagrees {
                    partition,
                    at: tail.deltas,
                    stored,
                    logged,
                });
            }
        }
        Ok(())
    }

    fn as_of(&self, vector: &Vector) -> Arc<Position> {
        Arc::new(self.tail.furthest(vector).position())
    }
}

/// Whether entries that were read at these vectors are as of the same position, given vectors that
/// are ahead of the tail somewhere.
fn same_position(tail: &Vector, one: Option<&Arc<Vector>>, other: Option<&Arc<Vector>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            Arc::ptr_eq(one, other) || tail.furthest(one) == tail.furthest(other)
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}
