//! Where a partition is taken on, and how its ids come to be remembered again.
//!
//! ```text
//!  read_from ──── messages of which only the ids are remembered ────► next ──── messages that are counted ────►
//!  (of the bookmark)                                                  (committed)
//! ```

use std::fmt;
use std::time::Instant;

use tally_counts::{Bookmark, Rules, next_offset};

/// Where a partition is taken on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) partition: i32,
    /// The next offset to count.
    pub(crate) next: i64,
    /// The next offset to read: where the ids begin that are remembered at `next`.
    pub(crate) read_from: i64,
    /// What was noted there; `None` where nothing is, so that nobody knows which messages before it
    /// left no ids.
    pub(crate) bookmark: Option<Bookmark>,
}

/// What was committed was counted by other rules: the totals would be of neither.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("it was counted up to here by other rules, {have}; the configuration says {want}")]
pub(crate) struct OtherRules {
    pub(crate) have: String,
    pub(crate) want: Rules,
}

impl Start {
    /// With nothing behind it.
    pub(crate) fn afresh(partition: i32, next: i64) -> Start {
        Start { partition, next, read_from: next, bookmark: None }
    }

    /// From a committed offset and what was committed with it. Where that does not say from where
    /// ids are remembered, they are all that the horizon holds.
    pub(crate) fn resumed(
        partition: i32,
        next: i64,
        metadata: &str,
        rules: &Rules,
    ) -> Result<Start, OtherRules> {
        let (read_from, bookmark) = match metadata.parse::<Bookmark>() {
            Ok(bookmark) => {
                if let Some(have) = bookmark.other_rules(rules) {
                    return Err(OtherRules { have: have.to_owned(), want: *rules });
                }
                (bookmark.from.map_or(next, |from| from.min(next)), Some(bookmark))
            }
            Err(error) => {
                let from = (next - i64::from(rules.horizon.offsets)).max(0);
                tracing::info!(%error, partition, from, next, "remember the ids of the whole horizon");
                (from, None)
            }
        };
        Ok(Start { partition, next, read_from, bookmark })
    }

    /// Where the log begins later than the ids, those before are gone.
    pub(crate) fn not_before(mut self, log_begins: i64) -> Start {
        if self.read_from < log_begins {
            let Start { partition, next, read_from, .. } = self;
            tracing::info!(partition, read_from, log_begins, next, "ids are gone from the log");
            self.read_from = log_begins.min(next);
        }
        self
    }
}

/// Ids on their way back into memory.
pub(crate) struct Rebuild {
    /// The next offset to read.
    pub(crate) next: i64,
    /// The bookmark tells which messages left no ids.
    pub(crate) is_marked: bool,
    messages: u64,
    begun: Instant,
    last: Instant,
}

impl Rebuild {
    /// If there is anything to read again.
    pub(crate) fn of(start: &Start, now: Instant) -> Option<Rebuild> {
        let is_marked = start.bookmark.is_some();
        let rebuild =
            Rebuild { next: start.read_from, is_marked, messages: 0, begun: now, last: now };
        (start.read_from < start.next).then_some(rebuild)
    }

    pub(crate) fn see(&mut self, offset: i64, now: Instant) {
        assert!(offset >= self.next, "offset {offset} comes after {} was seen", self.next);
        self.next = next_offset(offset);
        self.messages += 1;
        self.last = now;
    }

    pub(crate) fn end(self, partition: i32, ids: usize, bytes: usize) -> Rebuilt {
        let seconds = self.last.duration_since(self.begun).as_secs_f64();
        Rebuilt { partition, messages: self.messages, ids, bytes, seconds }
    }
}

/// What remembering a partition's ids again took.
#[derive(Debug, PartialEq)]
pub(crate) struct Rebuilt {
    pub(crate) partition: i32,
    pub(crate) messages: u64,
    pub(crate) ids: usize,
    pub(crate) bytes: usize,
    pub(crate) seconds: f64,
}

impl fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rebuilt { partition, messages, ids, bytes, seconds } = self;
        write!(
            f,
            "partition {partition}: {ids} ids in {bytes} bytes, from {messages} messages in {seconds:.3} s"
        )
    }
}
