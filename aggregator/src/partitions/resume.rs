//! Where a partition is read from when it is taken on, and how its ids are restored.
//!
//! ```text
//!  read_from ── messages that leave only their ids ──► next ── messages that are counted ──►
//!  (of the bookmark)                                (committed)
//! ```

use std::fmt;
use std::time::{Duration, Instant};

use tally_counts::{Bookmark, Rules, next_offset};

/// Where a partition is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResumePoint {
    pub(crate) partition: i32,
    /// The next offset to count.
    pub(crate) next: i64,
    /// The next offset to read: where the ids begin that are remembered at `next`.
    pub(crate) read_from: i64,
    /// What was noted there. `None` where nothing was: then nobody knows which messages before
    /// `next` left no ids.
    pub(crate) bookmark: Option<Bookmark>,
}

/// The error where messages up to the committed offset were counted by other rules: the totals
/// would be of neither.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("it was counted up to here by other rules, {have}; the configuration says {want}")]
pub(crate) struct OtherRules {
    pub(crate) have: String,
    pub(crate) want: Rules,
}

impl ResumePoint {
    /// A point with nothing behind it.
    pub(crate) fn afresh(partition: i32, next: i64) -> ResumePoint {
        ResumePoint { partition, next, read_from: next, bookmark: None }
    }

    /// The point that a committed offset and its metadata name. Where the metadata does not say
    /// from where ids are remembered, all ids of the horizon are.
    pub(crate) fn resumed(
        partition: i32,
        next: i64,
        metadata: &str,
        rules: &Rules,
    ) -> Result<ResumePoint, OtherRules> {
        let (read_from, bookmark) = match metadata.parse::<Bookmark>() {
            Ok(bookmark) => {
                if let Some(have) = bookmark.other_rules(rules) {
                    return Err(OtherRules { have: have.to_owned(), want: *rules });
                }
                (bookmark.from.map_or(next, |from| from.min(next)), Some(bookmark))
            }
            Err(error) => {
                let from = (next - i64::from(rules.horizon.offsets)).max(0);
                tracing::info!(
                    %error, partition, from, next,
                    "the committed offset has no bookmark: restoring the ids of the whole horizon"
                );
                (from, None)
            }
        };
        Ok(ResumePoint { partition, next, read_from, bookmark })
    }

    /// The same point in a log that begins at `log_begins`: ids before that are gone.
    pub(crate) fn not_before(mut self, log_begins: i64) -> ResumePoint {
        if self.read_from < log_begins {
            let ResumePoint { partition, next, read_from, .. } = self;
            tracing::info!(
                partition,
                read_from,
                log_begins,
                next,
                "Kafka has removed messages whose ids were remembered: those ids count anew"
            );
            self.read_from = log_begins.min(next);
        }
        self
    }
}

/// How far the ids of a partition are restored.
pub(crate) struct Restore {
    /// The next offset to read.
    pub(crate) next: i64,
    /// Whether a bookmark tells which messages left no ids.
    pub(crate) is_marked: bool,
    messages: u64,
    /// Since when the next message's schema is known to be gone.
    gone_since: Option<Instant>,
    gone: Option<Gone>,
    begun: Instant,
    last: Instant,
}

/// Messages that were counted once, and whose schema the registry does not have any more: nobody
/// knows their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) messages: u64,
    /// The first of them, and the id of its schema.
    pub(crate) offset: i64,
    pub(crate) schema: u32,
}

impl Restore {
    /// `None` if there is nothing to read again.
    pub(crate) fn of(point: &ResumePoint, now: Instant) -> Option<Restore> {
        let is_marked = point.bookmark.is_some();
        let next = point.read_from;
        let restore = Restore {
            next,
            is_marked,
            messages: 0,
            gone_since: None,
            gone: None,
            begun: now,
            last: now,
        };
        (next < point.next).then_some(restore)
    }

    pub(crate) fn see(&mut self, offset: i64, now: Instant) {
        assert!(offset >= self.next, "offset {offset} comes after {} was seen", self.next);
        self.next = next_offset(offset);
        self.messages += 1;
        self.last = now;
    }

    /// The next message's schema is gone. Whether to wait for it, as a registry may lag.
    pub(crate) fn waits(&mut self, patience: Duration, now: Instant) -> bool {
        let since = *self.gone_since.get_or_insert(now);
        now.duration_since(since) < patience
    }

    /// The next message's schema is known.
    pub(crate) fn found(&mut self) {
        self.gone_since = None;
    }

    /// The ids of the message at `offset` are given up.
    pub(crate) fn miss(&mut self, offset: i64, schema: u32) {
        self.gone.get_or_insert(Gone { messages: 0, offset, schema }).messages += 1;
    }

    pub(crate) fn end(&self, partition: i32, ids: usize, bytes: usize) -> Restored {
        let seconds = self.last.duration_since(self.begun).as_secs_f64();
        Restored { partition, messages: self.messages, gone: self.gone, ids, bytes, seconds }
    }
}

/// What it took to restore a partition's ids.
#[derive(Debug, PartialEq)]
pub(crate) struct Restored {
    pub(crate) partition: i32,
    pub(crate) messages: u64,
    pub(crate) gone: Option<Gone>,
    pub(crate) ids: usize,
    pub(crate) bytes: usize,
    pub(crate) seconds: f64,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Restored { partition, messages, ids, bytes, seconds, .. } = self;
        write!(
            f,
            "partition {partition}: {ids} ids in {bytes} bytes, \
             from {messages} messages in {seconds:.3} s"
        )
    }
}
