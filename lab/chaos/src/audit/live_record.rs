//! The record while it is written: by the load as it sends, by librdkafka's threads as it is
//! answered, and read by those who check reads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::content::{Content, LoadPlan, Route};
use super::counters::{READ_COUNTERS, READS};
use super::inclusion::{Inclusion, Inclusions};
use super::record::{Entry, Record, State};

const ODDITIES_KEPT: usize = 50;
/// How long a gateway may take to hear of a partition that was added.
const UNHEARD_MS: u32 = 60_000;

/// Increments so far. What is sent a second time on purpose counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) attempted: u64,
    pub(crate) acknowledged: u64,
    /// Given up, whatever became of them.
    pub(crate) failed: u64,
}

impl Progress {
    pub(crate) fn in_flight(&self) -> u64 {
        self.attempted.saturating_sub(self.acknowledged + self.failed)
    }
}

pub(crate) struct LiveRecord {
    began: Instant,
    began_ms: i64,
    clock_step_ms: AtomicI64,
    pub(super) plan: LoadPlan,
    entries: Mutex<Vec<Entry>>,
    attempted: AtomicU64,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    first_partitions: i32,
    /// The highest partition that an acknowledgement has named.
    highest_partition: AtomicI32,
    /// When partitions were added.
    grown_ms: Mutex<Vec<u32>>,
    reads: Mutex<Vec<ReadCounter>>,
    inclusions: Mutex<Inclusions>,
    oddities: Mutex<Vec<String>>,
}

/// What a counter that is read must come to.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadCounter {
    pub(super) attempted: i128,
    pub(super) attempts: u64,
    pub(super) acknowledged: Vec<Acknowledged>,
}

/// An increment that is in the log before `next`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    pub(super) partition: i32,
    pub(super) next: i64,
    pub(super) delta: i64,
}

impl LiveRecord {
    pub(super) fn new(plan: LoadPlan, first_partitions: i32) -> LiveRecord {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970");
        LiveRecord {
            began: Instant::now(),
            began_ms: i64::try_from(since_1970.as_millis())
                .expect("it is before the year 292 million"),
            clock_step_ms: AtomicI64::new(0),
            plan,
            entries: Mutex::new(Vec::new()),
            attempted: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            first_partitions,
            highest_partition: AtomicI32::new(-1),
            grown_ms: Mutex::default(),
            reads: Mutex::new(vec![ReadCounter::default(); READ_COUNTERS as usize]),
            inclusions: Mutex::default(),
            oddities: Mutex::new(Vec::new()),
        }
    }

    /// Milliseconds since the start.
    pub(super) fn elapsed_ms(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX)
    }

    /// The clock that events happen by.
    pub(super) fn clock_ms(&self) -> i64 {
        self.began_ms + i64::from(self.elapsed_ms()) + self.clock_step_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn step_clock(&self, ms: i64) {
        self.clock_step_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Writes down that a message is about to be sent; its mark comes back.
    pub(super) fn attempt(
        &self,
        way: Route,
        number: u32,
        clock_ms: i64,
        content: Option<&Content>,
    ) -> u32 {
        if let Some(content) = content {
            self.attempted.fetch_add(content.batch.increments.len() as u64, Ordering::Relaxed);
            self.expect_reads(content);
        }
        self.add(Entry::new(way, number, clock_ms, self.elapsed_ms()))
    }

    /// Writes down that a message is about to be sent once more, as another of the same content.
    pub(super) fn attempt_copy(&self, of: u32) -> u32 {
        let original = self.entry(of);
        self.add(Entry {
            is_copy: true,
            ..Entry::new(original.way, original.number, original.clock_ms, self.elapsed_ms())
        })
    }

    /// Writes down that partitions are about to be added: from then on gateways may choose another
    /// one for an id.
    pub(crate) fn grow(&self) {
        lock(&self.grown_ms).push(self.elapsed_ms());
    }

    /// Writes down that a request is about to be sent once more. One that may come to another
    /// partition than before may count there again.
    pub(super) fn attempt_again(&self, mark: u32, content: &Content) {
        let sent_ms = self.entry(mark).sent_ms;
        if lock(&self.grown_ms).iter().any(|grown_ms| grown_ms + UNHEARD_MS >= sent_ms) {
            self.expect_reads(content);
        }
    }

    fn expect_reads(&self, content: &Content) {
        let mut reads = lock(&self.reads);
        for (counter, delta) in reads_of(content) {
            reads[counter].attempted += i128::from(delta);
            reads[counter].attempts += 1;
        }
    }

    fn add(&self, entry: Entry) -> u32 {
        let mut entries = lock(&self.entries);
        entries.push(entry);
        u32::try_from(entries.len() - 1).expect("a run sends fewer than four billion messages")
    }

    pub(super) fn entry(&self, mark: u32) -> Entry {
        lock(&self.entries)[mark as usize]
    }

    /// Writes down what became of a message: partition and offset, where they were told.
    pub(super) fn settle(&self, mark: u32, state: State, place: Option<(i32, i64)>) {
        let settled_ms = self.elapsed_ms();
        let entry = {
            let mut entries = lock(&self.entries);
            let entry = &mut entries[mark as usize];
            entry.settled_ms = settled_ms;
            entry.state = state;
            (entry.partition, entry.offset) = place.unwrap_or((-1, -1));
            *entry
        };
        self.highest_partition.fetch_max(entry.partition, Ordering::Relaxed);
        if entry.is_copy || entry.way == Route::Bad {
            return;
        }
        let content = self.plan.content(entry.way, entry.number, entry.clock_ms);
        let increments = content.batch.increments.len() as u64;
        if entry.state != State::Acknowledged {
            self.failed.fetch_add(increments, Ordering::Relaxed);
            return;
        }
        self.acknowledged.fetch_add(increments, Ordering::Relaxed);
        if let Some((partition, offset)) = entry.acknowledged_at() {
            lock(&self.inclusions).acknowledged(partition, offset + 1, Instant::now());
            let mut reads = lock(&self.reads);
            for (counter, delta) in reads_of(&content) {
                reads[counter].acknowledged.push(Acknowledged {
                    partition,
                    next: offset + 1,
                    delta,
                });
            }
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        // In this order, so that none is settled before it was attempted.
        let (acknowledged, failed) =
            (self.acknowledged.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        Progress { attempted: self.attempted.load(Ordering::Relaxed), acknowledged, failed }
    }

    /// Whether something was acknowledged in that partition, or in a later one.
    pub(crate) fn has_reached(&self, partition: i32) -> bool {
        self.highest_partition.load(Ordering::Relaxed) >= partition
    }

    pub(super) fn with_reads<T>(&self, see: impl FnOnce(&[ReadCounter]) -> T) -> T {
        see(&lock(&self.reads))
    }

    /// A reader's answer with this position, next offsets by partition, was there.
    pub(super) fn included(&self, position: &BTreeMap<i32, i64>, at: Instant) {
        lock(&self.inclusions).included(position, at);
    }

    /// Acknowledged messages that readers have included so far, a sample of them.
    pub(crate) fn inclusions(&self) -> Vec<Inclusion> {
        lock(&self.inclusions).seen()
    }

    /// Keeps what nobody should have answered.
    pub(super) fn odd(&self, what: String) {
        let mut oddities = lock(&self.oddities);
        if oddities.len() < ODDITIES_KEPT {
            oddities.push(format!("at {} ms: {what}", self.elapsed_ms()));
        }
    }

    /// The record as it is. What is not settled by now is unknown.
    pub(super) fn close(&self) -> Record {
        let mut entries = lock(&self.entries).clone();
        for entry in entries.iter_mut().filter(|entry| entry.state == State::Attempted) {
            entry.state = State::Unknown;
            entry.settled_ms = self.elapsed_ms();
        }
        let plan = LoadPlan::new(self.plan.seed(), self.plan.ids(), self.plan.schemas);
        let (oddities, first_partitions) = (lock(&self.oddities).clone(), self.first_partitions);
        Record { plan, entries, oddities, first_partitions }
    }
}

/// The increments that reads are checked on: the counter, and what it gains.
fn reads_of(content: &Content) -> impl Iterator<Item = (usize, i64)> {
    let reads = content.batch.increments.iter().filter(|increment| increment.namespace == READS);
    reads.map(|increment| {
        let number = increment.key.strip_prefix("read-").and_then(|number| number.parse().ok());
        (number.expect("the load names these counters"), increment.delta)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
