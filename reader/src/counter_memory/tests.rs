//! The memory against a naive model: a log, a table that holds a beginning of each partition of it,
//! queries whose snapshots are taken at any moment while they are in flight. Whatever happens in
//! whatever order, an answer is the sum of all batches before its position.

use proptest::prelude::*;

use super::*;
use crate::counter::Name;
use crate::window::{Delta, Deltas, Packer};

const PARTITIONS: usize = 2;
const KEYS: usize = 4;
const CACHED: CacheLimits = CacheLimits { counters: 24, bytes: 1 << 20 };
/// Fewer than there are counters.
const FEW: CacheLimits = CacheLimits { counters: 3, bytes: 1 << 20 };

#[derive(Clone, Debug)]
enum Step {
    /// A batch is written to the log: transaction markers before it, messages it is of, what it
    /// came to.
    Write {
        partition: usize,
        markers: i64,
        messages: i64,
        deltas: Vec<(usize, u32, i64)>,
    },
    /// The next batch of a partition is stored in the table, or tailed.
    Store(usize),
    Tail(usize),
    /// A query begins; its snapshot is taken, `lag` batches a partition behind the table; it
    /// finishes, or fails when no snapshot was taken.
    Begin(Vec<usize>),
    Take {
        flight: usize,
        lag: usize,
    },
    Finish {
        flight: usize,
        buckets: Option<(u32, u32)>,
    },
    /// The ledger is read, and what was read is learned later.
    ReadLedger,
    LearnLedger,
    Hit(Vec<usize>),
    /// A partition begins anew where a replica says that the table is.
    Restart {
        partition: usize,
        lag: usize,
    },
    /// The reader learns of the partitions that were added.
    Grow,
}

fn steps(lag: usize) -> impl Strategy<Value = Vec<Step>> {
    let (partition, lags) = (0..PARTITIONS, 0..=lag);
    let keys = prop::collection::vec(0..KEYS, 1..4);
    let deltas = prop::collection::vec((0..KEYS, 0u32..3, -5i64..100), 0..4);
    let write = (partition.clone(), 0i64..3, 1i64..5, deltas).prop_map(
        |(partition, markers, messages, deltas)| Step::Write {
            partition,
            markers,
            messages,
            deltas,
        },
    );
    let buckets = prop::option::weighted(0.3, (0u32..3, 0u32..4));
    let step = prop_oneof![
        4 => write,
        4 => partition.clone().prop_map(Step::Store),
        4 => partition.clone().prop_map(Step::Tail),
        2 => keys.clone().prop_map(Step::Begin),
        2 => (0usize..4, 0..=lag).prop_map(|(flight, lag)| Step::Take { flight, lag }),
        2 => (0usize..4, buckets).prop_map(|(flight, buckets)| Step::Finish { flight, buckets }),
        1 => Just(Step::ReadLedger),
        1 => Just(Step::LearnLedger),
        1 => (partition, lags).prop_map(|(partition, lag)| Step::Restart { partition, lag }),
        1 => Just(Step::Grow),
        4 => keys.prop_map(Step::Hit),
    ];
    prop::collection::vec(step, 1..120)
}

struct Query {
    id: FlightId,
    counters: Vec<Counter>,
    /// How many batches of each partition the table held when the snapshot was taken.
    taken: Option<[usize; PARTITIONS]>,
}

struct Model {
    memory: CounterMemory,
    log: [Vec<Arrival>; PARTITIONS],
    /// The source offset at which each partition of the log begins.
    begins: [i64; PARTITIONS],
    stored: [usize; PARTITIONS],
    tailed: [usize; PARTITIONS],
    queries: Vec<Query>,
    ledger: Option<Vector>,
    behind: usize,
}

fn counter(key: usize) -> Counter {
    Counter::new("ns", &key.to_string())
}

fn gains(gains: &[(usize, u32, i64)]) -> Deltas {
    let mut packer = Packer::with_room(0, 0);
    for (key, bucket_s, sum) in gains {
        let name = key.to_string();
        packer.push(Delta {
            name: Name::new("ns", &name),
            bucket_s: *bucket_s,
            sum: *sum,
            events: 1,
        });
    }
    packer.finish()
}

impl Model {
    fn new(begins: [i64; PARTITIONS]) -> Model {
        // The last partition is not known yet.
        let start = Vector::new(vec![StoredOffsets::default(); PARTITIONS - 1]);
        Model {
            memory: CounterMemory::new(start, FEW),
            log: Default::default(),
            begins,
            stored: [0; PARTITIONS],
            tailed: [0; PARTITIONS],
            queries: Vec::new(),
            ledger: None,
            behind: 0,
        }
    }

    /// The place after the first `batches` of a partition.
    fn place(&self, partition: usize, batches: usize) -> StoredOffsets {
        match batches.checked_sub(1).map(|last| &self.log[partition][last]) {
            Some(batch) => {
                StoredOffsets { deltas: next_offset(batch.offset), increments: batch.to }
            }
            None => StoredOffsets::default(),
        }
    }

    fn vector(&self, batches: [usize; PARTITIONS]) -> Vector {
        Vector::new((0..PARTITIONS).map(|p| self.place(p, batches[p])).collect())
    }

    fn write(
        &mut self,
        partition: usize,
        markers: i64,
        messages: i64,
        deltas: &[(usize, u32, i64)],
    ) {
        let last = self.log[partition].last();
        let from = last.map_or(self.begins[partition], |batch| batch.to);
        let offset = last.map_or(0, |batch| next_offset(batch.offset)) + markers;
        let deltas = gains(deltas);
        self.log[partition].push(Arrival { partition, offset, from, to: from + messages, deltas });
    }

    fn sum<'a>(
        batches: impl Iterator<Item = &'a Arrival>,
        counter: &Counter,
        buckets: &Range<u64>,
    ) -> Option<Total> {
        let deltas = batches.flat_map(|batch| batch.deltas.iter());
        let here = |delta: &Delta<'_>| {
            delta.name == counter.name() && buckets.contains(&u64::from(delta.bucket_s))
        };
        deltas.filter(here).fold(None, |total, delta| {
            let mut total = total.unwrap_or(Total::ZERO);
            total.add(delta.sum, delta.events);
            Some(total)
        })
    }

    fn snapshot(
        &self,
        query: &Query,
        taken: [usize; PARTITIONS],
        buckets: &Range<u64>,
    ) -> Snapshot {
        let batches = || (0..PARTITIONS).flat_map(|p| &self.log[p][..taken[p]]);
        let row =
            |counter: &Counter| Some((counter.clone(), Model::sum(batches(), counter, buckets)?));
        Snapshot {
            vector: Arc::new(self.vector(taken)),
            totals: query.counters.iter().filter_map(row).collect(),
        }
    }

    /// The answer is what it says, and no older than what was tailed.
    fn check(
        &mut self,
        counters: &[Counter],
        buckets: &Range<u64>,
        answer: &TotalsAsOf,
    ) -> Result<(), TestCaseError> {
        prop_assert!(answer.as_of.includes(&self.vector(self.tailed).position()));
        let included =
            |batch: &&Arrival| batch.to <= answer.as_of.get(number(batch.partition)).unwrap_or(0);
        for (counter, total) in counters.iter().zip(&answer.totals) {
            let expected = Model::sum(self.log.iter().flatten().filter(included), counter, buckets);
            prop_assert_eq!(
                *total,
                expected.unwrap_or(Total::ZERO),
                "{:?} as of {}",
                counter,
                &*answer.as_of
            );
        }
        Ok(())
    }

    fn finish(&mut self, query: &Query, buckets: Option<(u32, u32)>) -> Result<(), TestCaseError> {
        let Some(taken) = query.taken else { return Ok(()) };
        let (counters, buckets, answer) = match buckets {
            Some((from, to)) => {
                let buckets = u64::from(from)..u64::from(to);
                let snapshot = self.snapshot(query, taken, &buckets);
                let answer =
                    self.memory.finish(Wanted::Buckets(&query.counters[0], &buckets), &snapshot);
                (&query.counters[..1], buckets, answer)
            }
            None => {
                let buckets = 0..u64::MAX;
                let snapshot = self.snapshot(query, taken, &buckets);
                (
                    &query.counters[..],
                    buckets,
                    self.memory.finish(Wanted::Counters(&query.counters), &snapshot),
                )
            }
        };
        match answer {
            Ok(answer) => self.check(counters, &buckets, &answer),
            Err(SnapshotError::Behind { .. }) => {
                self.behind += 1;
                Ok(())
            }
            Err(error) => Err(TestCaseError::fail(error.to_string())),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Write { partition, markers, messages, deltas } => {
                self.write(*partition, *markers, *messages, deltas);
            }
            Step::Store(p) => self.stored[*p] = (self.stored[*p] + 1).min(self.log[*p].len()),
            Step::Tail(p) | Step::Restart { partition: p, .. }
                if *p >= self.memory.partitions() => {}
            Step::Restart { partition, lag } => {
                let stored = self.stored[*partition].saturating_sub(*lag);
                self.memory.restart(*partition, self.place(*partition, stored));
                self.tailed[*partition] = stored;
            }
            Step::Grow => self.memory.grow(PARTITIONS),
            Step::Tail(p) => {
                if let Some(batch) = self.log[*p].get(self.tailed[*p]) {
                    self.memory
                        .apply(batch.clone())
                        .map_err(|broken| TestCaseError::fail(broken.to_string()))?;
                    self.tailed[*p] += 1;
                }
            }
            Step::Begin(keys) => {
                let counters = keys.iter().map(|key| counter(*key)).collect();
                self.queries.push(Query { id: self.memory.begin(), counters, taken: None });
            }
            Step::Take { flight, lag } => {
                if let Some(query) = self.queries.get_mut(*flight) {
                    query
                        .taken
                        .get_or_insert(self.stored.map(|stored| stored.saturating_sub(*lag)));
                }
            }
            Step::Finish { flight, buckets } => {
                if *flight < self.queries.len() {
                    let query = self.queries.remove(*flight);
                    self.finish(&query, *buckets)?;
                    self.memory.end(query.id);
                }
            }
            Step::ReadLedger => self.ledger = Some(self.vector(self.stored)),
            Step::LearnLedger => {
                if let Some(vector) = self.ledger.take() {
                    self.memory.learn(&vector);
                }
            }
            Step::Hit(keys) => {
                let counters: Vec<Counter> = keys.iter().map(|key| counter(*key)).collect();
                if let Recall::Found(answer) = self.memory.recall(&counters) {
                    self.check(&counters, &(0..u64::MAX), &answer)?;
                }
            }
        }
        Ok(())
    }

    /// Once all is tailed, stored and known, nothing is kept for queries that are not there.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for query in std::mem::take(&mut self.queries) {
            self.memory.end(query.id);
        }
        self.step(&Step::Grow)?;
        for p in 0..PARTITIONS {
            while self.tailed[p] < self.log[p].len() {
                self.step(&Step::Tail(p))?;
            }
            self.stored[p] = self.log[p].len();
        }
        self.step(&Step::ReadLedger)?;
        self.step(&Step::LearnLedger)?;
        prop_assert_eq!(self.memory.unstored_bytes(), 0);
        Ok(())
    }
}

fn run(begins: [i64; PARTITIONS], steps: &[Step]) -> Result<Model, TestCaseError> {
    let mut model = Model::new(begins);
    for step in steps {
        model.step(step)?;
    }
    model.settle()?;
    Ok(model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// On one server, where no snapshot is older than what an earlier query saw, every query gives
    /// an answer.
    #[test]
    fn every_answer_is_the_sum_of_all_batches_before_its_position(
        begins in [0i64..9, 0i64..9],
        steps in steps(0),
    ) {
        let is_undisturbed = |step: &Step| !matches!(step, Step::Restart { .. });
        let steps: Vec<Step> = steps.into_iter().filter(is_undisturbed).collect();
        let model = run(begins, &steps)?;
        prop_assert_eq!(model.behind, 0);
    }

    /// Where snapshots may lag, or partitions begin anew, one that can no longer be made whole is
    /// refused.
    #[test]
    fn a_lagging_replica_and_a_partition_that_begins_anew_never_make_an_answer_wrong(
        begins in [0i64..9, 0i64..9],
        steps in steps(3),
    ) {
        run(begins, &steps)?;
    }
}

fn batch(offset: i64, from: i64, to: i64) -> Arrival {
    Arrival { partition: 0, offset, from, to, deltas: gains(&[(0, 0, 1)]) }
}

fn place(deltas: i64, source: i64) -> Vector {
    Vector::new(vec![StoredOffsets { deltas, increments: source }])
}

fn snapshot(deltas: i64, source: i64) -> Snapshot {
    Snapshot { vector: Arc::new(place(deltas, source)), totals: HashMap::new() }
}

#[test]
fn a_batch_that_does_not_follow_breaks_the_tail_and_changes_nothing() {
    let mut memory = CounterMemory::new(place(3, 100), CACHED);
    memory.finish(Wanted::Counters(&[counter(0)]), &snapshot(3, 100)).unwrap();
    let hole = ChainError::Hole { expected: 100, from: 101 };
    let overlap = ChainError::Overlap { expected: 100, from: 99 };
    for (from, source) in [(101, hole), (99, overlap)] {
        let broken = memory.apply(batch(7, from, 110)).unwrap_err();
        assert_eq!(broken, Broken::Chain { partition: 0, offset: 7, source });
    }
    assert_eq!(memory.position().to_string(), "0:100");
    let Recall::Found(answer) = memory.recall(&[counter(0)]) else { panic!("it was cached") };
    assert_eq!(answer.totals, [Total::ZERO]);
}

#[test]
fn a_snapshot_below_the_floor_is_refused() {
    let mut memory = CounterMemory::new(place(0, 0), CACHED);
    memory.apply(batch(0, 0, 10)).unwrap();
    memory.learn(&place(1, 10));
    let refused = memory.finish(Wanted::Counters(&[counter(0)]), &snapshot(0, 0)).unwrap_err();
    assert_eq!(refused, SnapshotError::Behind { partition: 0, at: 0, floor: 1 });
}

#[test]
fn a_store_and_a_log_that_disagree_give_no_answer() {
    let mut memory = CounterMemory::new(place(0, 0), CACHED);
    memory.apply(batch(0, 0, 10)).unwrap();
    let refused = memory.finish(Wanted::Counters(&[counter(0)]), &snapshot(1, 9)).unwrap_err();
    assert_eq!(refused, SnapshotError::Disagrees { partition: 0, at: 1, stored: 9, logged: 10 });
}

#[test]
fn counters_ahead_of_the_tail_by_different_snapshots_are_apart_until_the_tail_is_there() {
    let mut memory = CounterMemory::new(place(0, 0), CACHED);
    memory.finish(Wanted::Counters(&[counter(1)]), &snapshot(0, 0)).unwrap();
    memory.finish(Wanted::Counters(&[counter(2)]), &snapshot(1, 10)).unwrap();
    assert!(matches!(memory.recall(&[counter(1), counter(2)]), Recall::Apart));
    memory.apply(batch(0, 0, 10)).unwrap();
    let Recall::Found(answer) = memory.recall(&[counter(1), counter(2)]) else {
        panic!("both are at the tail")
    };
    assert_eq!(answer.as_of.to_string(), "0:10");
}

#[test]
fn the_window_is_full_only_for_batches_that_must_be_kept() {
    let mut memory = CounterMemory::new(place(0, 0), CACHED);
    let (first, second) = (batch(0, 0, 10), batch(1, 10, 20));
    let bytes = second.bytes();
    let has_room = |memory: &CounterMemory, budget| memory.has_room(0, 1, bytes, budget);
    assert!(memory.has_room(0, 0, bytes, 1), "a batch may have the window to itself");
    memory.apply(first.clone()).unwrap();
    assert!(!has_room(&memory, first.bytes() + bytes - 1));
    assert!(has_room(&memory, 2 * (first.bytes() + bytes)));
    let flight = memory.begin();
    memory.learn(&place(2, 20));
    assert!(!has_room(&memory, 1), "a query in flight may still lack it");
    memory.end(flight);
    assert!(has_room(&memory, 1), "every snapshot to come has it");
}

#[test]
fn a_partition_that_begins_anew_takes_nothing_along() {
    let mut memory = CounterMemory::new(place(0, 0), CACHED);
    memory.finish(Wanted::Counters(&[counter(0)]), &snapshot(0, 0)).unwrap();
    memory.apply(batch(0, 0, 10)).unwrap();
    let flight = memory.begin();
    memory.restart(0, StoredOffsets { deltas: 5, increments: 90 });
    assert_eq!((memory.position().to_string().as_str(), memory.unstored_bytes()), ("0:90", 0));
    assert!(matches!(memory.recall(&[counter(0)]), Recall::Missing(_)));
    let refused = memory.finish(Wanted::Counters(&[counter(0)]), &snapshot(3, 70)).unwrap_err();
    assert_eq!(refused, SnapshotError::Behind { partition: 0, at: 3, floor: 5 });
    memory.end(flight);
    memory.apply(batch(5, 90, 100)).unwrap();
    let answer = memory.finish(Wanted::Counters(&[counter(0)]), &snapshot(5, 90)).unwrap();
    assert_eq!((answer.totals[0].sum, answer.as_of.to_string().as_str()), (1, "0:100"));
}

#[test]
fn a_store_that_has_something_else_at_the_tail_is_noticed() {
    let mut memory = CounterMemory::new(place(0, 0), CACHED);
    memory.apply(batch(0, 0, 10)).unwrap();
    assert_eq!(memory.disagreements(&place(0, 0)), []);
    assert_eq!(memory.disagreements(&place(1, 10)), []);
    let disagrees = Broken::Disagrees { partition: 0, at: 1, stored: 9, logged: 10 };
    assert_eq!(memory.disagreements(&place(1, 9)), [(0, disagrees)]);
}
