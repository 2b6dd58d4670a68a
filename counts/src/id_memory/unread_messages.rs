//! The messages whose ids were not remembered because their schema could not be used. They are kept
//! as runs of one schema, since a client whose schema is missing usually sends many messages.

use super::bookmark::{Gap, MAX_GAPS};

#[derive(Default)]
pub(super) struct UnreadMessages {
    runs: Vec<Run>,
}

struct Run {
    gap: Gap,
    /// Whether the run goes on: no message by this schema was read since.
    is_open: bool,
}

impl UnreadMessages {
    pub(super) fn new(gaps: Vec<Gap>) -> UnreadMessages {
        UnreadMessages { runs: gaps.into_iter().map(|gap| Run { gap, is_open: true }).collect() }
    }

    pub(super) fn contains(&self, schema: u32, offset: i64) -> bool {
        self.runs.iter().any(|run| run.gap.contains(schema, offset))
    }

    /// Ends the runs of this schema that are before `offset`: a message by it was read there.
    pub(super) fn end_runs(&mut self, schema: u32, offset: i64) {
        for run in &mut self.runs {
            run.is_open &= run.gap.schema != schema || run.gap.last >= offset;
        }
    }

    /// Adds a message. Runs that end before `oldest`, the oldest remembered id, are dropped: a
    /// rebuild does not read them. With no id remembered, none is needed.
    ///
    /// A bookmark has room for only [`MAX_GAPS`] runs. Beyond that the run that ended first is
    /// dropped, and the offset after its end is returned: all ids before it must be forgotten, so
    /// that a rebuild begins behind that run.
    pub(super) fn add(&mut self, schema: u32, offset: i64, oldest: Option<i64>) -> Option<i64> {
        self.runs.retain(|run| oldest.is_some_and(|oldest| run.gap.last >= oldest));
        oldest?;
        match self.runs.iter_mut().find(|run| run.is_open && run.gap.schema == schema) {
            Some(run) => run.gap.last = run.gap.last.max(offset),
            None => self
                .runs
                .push(Run { gap: Gap { schema, first: offset, last: offset }, is_open: true }),
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
