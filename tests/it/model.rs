//! What the totals must be.

use std::collections::BTreeMap;

use tally_schemas::Increment;

/// One increment, as a test makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) namespace: String,
    pub(crate) key: String,
    pub(crate) delta: i64,
    pub(crate) at_ms: i64,
}

impl Event {
    pub(crate) fn new(namespace: &str, key: &str, delta: i64, at_ms: i64) -> Event {
        Event { namespace: namespace.to_owned(), key: key.to_owned(), delta, at_ms }
    }

    pub(crate) fn increment(&self) -> Increment<'_> {
        let Event { namespace, key, delta, at_ms } = self;
        Increment { namespace, key, delta: *delta, at_ms: *at_ms, id: None }
    }
}

/// A counter in a time bucket: namespace, key, and the bucket's start in seconds.
pub(crate) type Cell = (String, String, u32);

/// The sum, and how many increments it is of.
pub(crate) type Total = (i128, i64);

/// The totals of everything that was accepted, by counter and minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    cells: BTreeMap<Cell, Total>,
}

impl Model {
    pub(crate) fn add(&mut self, event: &Event) {
        let minute = u32::try_from(event.at_ms.div_euclid(60_000) * 60)
            .expect("tests count in 1970 to 2106");
        let cell = (event.namespace.clone(), event.key.clone(), minute);
        let total = self.cells.entry(cell).or_default();
        total.0 += i128::from(event.delta);
        total.1 += 1;
    }

    pub(crate) fn add_all<'e>(&mut self, events: impl IntoIterator<Item = &'e Event>) {
        events.into_iter().for_each(|event| self.add(event));
    }

    pub(crate) fn merge(&mut self, other: Model) {
        for (cell, (sum, events)) in other.cells {
            let total = self.cells.entry(cell).or_default();
            total.0 += sum;
            total.1 += events;
        }
    }

    pub(crate) fn increments(&self) -> i64 {
        self.cells.values().map(|(_, events)| events).sum()
    }

    pub(crate) fn cells(&self) -> &BTreeMap<Cell, Total> {
        &self.cells
    }

    /// Each counter's total, of all buckets.
    pub(crate) fn counters(&self) -> BTreeMap<(&str, &str), Total> {
        let mut counters: BTreeMap<(&str, &str), Total> = BTreeMap::new();
        for ((namespace, key, _), (sum, events)) in &self.cells {
            let total = counters.entry((namespace, key)).or_default();
            total.0 += sum;
            total.1 += events;
        }
        counters
    }

    /// # Panics
    /// If the totals differ, with the first few differences.
    pub(crate) fn expect(&self, found: &BTreeMap<Cell, Total>) {
        let cells =
            self.cells.keys().chain(found.keys().filter(|cell| !self.cells.contains_key(cell)));
        let differences: Vec<String> = cells
            .filter(|cell| self.cells.get(cell) != found.get(cell))
            .map(|cell| {
                format!(
                    "{cell:?}: {:?} expected, {:?} found",
                    self.cells.get(cell),
                    found.get(cell)
                )
            })
            .collect();
        assert!(
            differences.is_empty(),
            "{} of {} totals (sum, events) are wrong:\n{}",
            differences.len(),
            self.cells.len(),
            differences[..differences.len().min(10)].join("\n")
        );
    }
}
