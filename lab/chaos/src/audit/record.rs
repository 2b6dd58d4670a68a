//! What was sent and what became of it, a few bytes a message.

use std::fmt;

use super::content::{Content, LoadPlan, POISON, Route};

/// A message on its way, or a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) way: Route,
    /// Which message of this way: with the clock, all that its content takes.
    pub(super) number: u32,
    /// The event clock when it was first sent.
    pub(super) clock_ms: i64,
    /// Another has the same content and was sent before.
    pub(super) is_copy: bool,
    /// Milliseconds since the load's start.
    pub(super) sent_ms: u32,
    pub(super) settled_ms: u32,
    pub(super) state: State,
    /// Partition and offset that the acknowledgement named; negative where there is none, or where
    /// it did not say.
    pub(super) partition: i32,
    pub(super) offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Attempted,
    Acknowledged,
    /// It may be in the log.
    Unknown,
    /// Whoever it was sent to said that it is certainly not in the log.
    NotApplied,
}

impl Entry {
    pub(super) fn new(way: Route, number: u32, clock_ms: i64, sent_ms: u32) -> Entry {
        Entry {
            way,
            number,
            clock_ms,
            is_copy: false,
            sent_ms,
            settled_ms: sent_ms,
            state: State::Attempted,
            partition: -1,
            offset: -1,
        }
    }

    /// Whether it is huge once decompressed.
    pub(super) fn is_poison(&self) -> bool {
        self.way == Route::Bad && self.number & POISON != 0
    }

    /// Where its acknowledgement said that it is.
    pub(super) fn acknowledged_at(&self) -> Option<(i32, i64)> {
        (self.state == State::Acknowledged && self.partition >= 0 && self.offset >= 0)
            .then_some((self.partition, self.offset))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copy = if self.is_copy { ", again" } else { "" };
        write!(f, "{} {}{copy}, sent at {} ms", self.way, self.number, self.sent_ms)?;
        match (self.state, self.acknowledged_at()) {
            (State::Acknowledged, Some((partition, offset))) => {
                write!(f, ", acknowledged at {} ms as {partition}:{offset}", self.settled_ms)
            }
            (State::Acknowledged, None) => {
                write!(f, ", acknowledged at {} ms without a place", self.settled_ms)
            }
            (State::Unknown, _) => write!(f, ", outcome unknown at {} ms", self.settled_ms),
            (State::NotApplied, _) => write!(f, ", not applied by {} ms", self.settled_ms),
            (State::Attempted, _) => write!(f, ", never settled"),
        }
    }
}

pub(crate) struct Record {
    pub(super) plan: LoadPlan,
    pub(super) entries: Vec<Entry>,
    /// What should not have been answered, the first of them.
    pub(super) oddities: Vec<String>,
    /// Partitions of `increments` as the load began.
    pub(super) first_partitions: i32,
}

impl Record {
    /// What a sound message holds.
    pub(super) fn content(&self, entry: &Entry) -> Content {
        self.plan.content(entry.way, entry.number, entry.clock_ms)
    }
}
