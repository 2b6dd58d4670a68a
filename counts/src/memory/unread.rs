//! Messages that left no ids because their schema could not be used: as runs of one schema, since
//! who sends by a schema that is not there usually does so many times over.

use super::bookmark::{Gap, MAX_GAPS};

#[derive(Default)]
pub(super) struct Unread {
    runs: Vec<Run>,
}

struct Run {
    gap: Gap,
    /// No message by this schema left ids since.
    open: bool,
}

impl Unread {
    pub(super) fn new(gaps: Vec<Gap>) -> Unread {
        Unread { runs: gaps.into_iter().map(|gap| Run { gap, open: true }).collect() }
    }

    pub(super) fn contains(&self, schema: u32, offset: i64) -> bool {
        self.runs.iter().any(|run| run.gap.contains(schema, offset))
    }

    /// Ends the runs of this schema that are before `offset`.
    pub(super) fn read(&mut self, schema: u32, offset: i64) {
        for run in &mut self.runs {
            run.open &= run.gap.schema != schema || run.gap.last >= offset;
        }
    }

    /// Adds a message; those before `oldest` matter no more, and none does where nothing is
    /// remembered.
    ///
    /// A bookmark has room for so many runs only. Beyond that the run that ended first is given up,
    /// and with it what was remembered up to its end: the offset comes back before which everything
    /// must be forgotten.
    pub(super) fn add(&mut self, schema: u32, offset: i64, oldest: Option<i64>) -> Option<i64> {
        self.runs.retain(|run| oldest.is_some_and(|oldest| run.gap.last >= oldest));
        oldest?;
        match self.runs.iter_mut().find(|run| run.open && run.gap.schema == schema) {
            Some(run) => run.gap.last = run.gap.last.max(offset),
            None => {
                self.runs.push(Run { gap: Gap { schema, first: offset, last: offset }, open: true })
            }
        }
        if self.runs.len() <= MAX_GAPS {
            return None;
        }
        let (first_to_end, _) = self.runs.iter().enumerate().min_by_key(|(_, run)| run.gap.last)?;
        Some(self.runs.remove(first_to_end).gap.last + 1)
    }

    pub(super) fn gaps_since(&self, from: Option<i64>) -> Vec<Gap> {
        let Some(from) = from else { return Vec::new() };
        self.runs.iter().map(|run| run.gap).filter(|gap| gap.last >= from).collect()
    }
}
