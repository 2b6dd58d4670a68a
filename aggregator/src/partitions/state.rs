//! The life of one partition in this worker, from the moment that the group gives it until the
//! group takes it back. This file has every legal move; nobody else changes a state.
//!
//! ```text
//!          Given            Located           the committed offset is reached
//!  (none) ───────► Locating ───────► Restoring ───────────────────────► Counting
//!                     │  Located, and there are no ids to restore           ▲
//!                     └─────────────────────────────────────────────────────┘
//!  Restoring, Counting ── SchemaMissing ──► WaitingForSchema ── SchemaLearned ──► as before
//!  Restoring, Counting, WaitingForSchema ── Rewound ──► Locating
//!  Locating ── Unlocatable ──► Stopped
//!  Restoring, Counting ── Unreadable ──► Stopped
//!  each state ── Parked ──► Parked
//!  each state ── Taken ──► (none)
//! ```

use tally_counts::Fold;

use super::resume::{Restore, ResumePoint};

/// Tells the answer to a request for a resume point from the answers to earlier requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// Where a partition that this worker holds is in its life.
pub(crate) enum State {
    /// The locator looks for the offset to read from.
    Locating(Ticket),
    /// Messages before the committed offset are read again for their ids, and none is counted.
    Restoring { fold: Fold, restore: Restore },
    /// Messages are counted or rejected.
    Counting(Fold),
    /// Nothing is read, because the schema of a message cannot be had now. What is summed is kept
    /// and flushed.
    WaitingForSchema { fold: Fold, restore: Option<Restore>, schema: u32 },
    /// Nothing is read until the group takes the partition, because Kafka's log of it cannot be
    /// read on as it was. What is summed is kept and flushed. Trying again would not be safe: a log
    /// that was cut off may have grown beyond the offset that is next.
    Stopped(Option<Fold>),
    /// Nothing is read until the group takes the partition: a flush whose outcome is not known may
    /// still commit.
    Parked,
}

/// What happens to a partition.
#[derive(Debug)]
pub(crate) enum Event {
    /// The group gives the partition, perhaps once more after this worker was left out.
    Given,
    /// The locator has found where to read from.
    Located(Ticket, ResumePoint),
    /// The locator cannot say where to read from.
    Unlocatable(Ticket),
    /// Kafka's log cannot be read on.
    Unreadable,
    /// The registry does not tell the schema of the message that is next.
    SchemaMissing { schema: u32 },
    /// The registry has told it.
    SchemaLearned,
    /// A message of the partition came out of the consumer on another way than through the fetcher.
    Strayed,
    /// A flush did not commit: what is summed is dropped, and the committed offset decides.
    Rewound,
    /// Nobody knows whether a flush will commit.
    Parked,
    /// The group takes the partition.
    Taken,
}

/// What the locator and the fetcher are told after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// All goes on as it was.
    Nothing,
    /// Stop reading, and look for the resume point.
    Locate(Ticket),
    /// Read from this offset on.
    ReadFrom(i64),
    /// Stop reading and looking.
    Stop,
}

impl State {
    /// As metrics name it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            State::Locating(_) => "locating",
            State::Restoring { .. } => "restoring",
            State::Counting(_) => "counting",
            State::WaitingForSchema { .. } => "waiting_for_schema",
            State::Stopped(_) => "stopped",
            State::Parked => "parked",
        }
    }

    pub(crate) fn fold(&self) -> Option<&Fold> {
        match self {
            State::Restoring { fold, .. }
            | State::Counting(fold)
            | State::WaitingForSchema { fold, .. } => Some(fold),
            State::Stopped(fold) => fold.as_ref(),
            State::Locating(_) | State::Parked => None,
        }
    }

    pub(crate) fn fold_mut(&mut self) -> Option<&mut Fold> {
        match self {
            State::Restoring { fold, .. }
            | State::Counting(fold)
            | State::WaitingForSchema { fold, .. } => Some(fold),
            State::Stopped(fold) => fold.as_mut(),
            State::Locating(_) | State::Parked => None,
        }
    }

    /// The next offset to read of a partition that is read.
    pub(crate) fn next(&self) -> Option<i64> {
        match self {
            State::Restoring { restore, .. } => Some(restore.next),
            State::Counting(fold) => Some(fold.next()),
            State::Locating(_)
            | State::WaitingForSchema { .. }
            | State::Stopped(_)
            | State::Parked => None,
        }
    }

    /// The state of a partition that is read: with ids to restore, or with none.
    fn reading(fold: Fold, restore: Option<Restore>) -> State {
        match restore {
            Some(restore) => State::Restoring { fold, restore },
            None => State::Counting(fold),
        }
    }
}

/// The state after `event`, where `None` is a partition that this worker does not hold, and what is
/// to be done. A state without a fold has dropped what was summed.
///
/// `located` makes the fold of a resume point, and says what is to be restored. `ticket` is one
/// that was never used.
pub(crate) fn after(
    state: Option<State>,
    event: Event,
    ticket: Ticket,
    located: impl FnOnce(&ResumePoint) -> (Fold, Option<Restore>),
) -> (Option<State>, Action) {
    match (state, event) {
        (_, Event::Taken) => (None, Action::Stop),
        (_, Event::Given) => (Some(State::Locating(ticket)), Action::Locate(ticket)),
        // What comes late for a partition that was taken meanwhile.
        (None, _) => (None, Action::Nothing),
        (Some(State::Parked), _) => (Some(State::Parked), Action::Nothing),
        (Some(_), Event::Parked) => (Some(State::Parked), Action::Stop),
        (Some(State::Stopped(_)), Event::Rewound) => (Some(State::Stopped(None)), Action::Nothing),
        (Some(_), Event::Rewound) => (Some(State::Locating(ticket)), Action::Locate(ticket)),
        (Some(State::Locating(asked)), Event::Located(answered, point)) if asked == answered => {
            let (fold, restore) = located(&point);
            (Some(State::reading(fold, restore)), Action::ReadFrom(point.read_from))
        }
        (Some(State::Locating(asked)), Event::Unlocatable(answered)) if asked == answered => {
            (Some(State::Stopped(None)), Action::Stop)
        }
        // The answer to a request that a later one has replaced.
        (state, Event::Located(..) | Event::Unlocatable(_)) => (state, Action::Nothing),
        (Some(State::Restoring { fold, .. } | State::Counting(fold)), Event::Unreadable) => {
            (Some(State::Stopped(Some(fold))), Action::Stop)
        }
        (Some(State::Counting(fold)), Event::SchemaMissing { schema }) => {
            (Some(State::WaitingForSchema { fold, restore: None, schema }), Action::Stop)
        }
        (Some(State::Restoring { fold, restore }), Event::SchemaMissing { schema }) => {
            let restore = Some(restore);
            (Some(State::WaitingForSchema { fold, restore, schema }), Action::Stop)
        }
        (Some(State::WaitingForSchema { fold, restore, .. }), Event::SchemaLearned) => {
            let state = State::reading(fold, restore);
            let action = state.next().map_or(Action::Nothing, Action::ReadFrom);
            (Some(state), action)
        }
        (Some(state), Event::Strayed) => {
            let action = state.next().map_or(Action::Nothing, Action::ReadFrom);
            (Some(state), action)
        }
        // What comes of a partition that is not read any more, or waits for nothing.
        (state, Event::SchemaMissing { .. } | Event::SchemaLearned | Event::Unreadable) => {
            (state, Action::Nothing)
        }
    }
}
