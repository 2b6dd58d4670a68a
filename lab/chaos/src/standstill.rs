//! Which partitions stand still, and whether anybody says why.
//!
//! ```text
//!  lags ──────► stands still: lacks something, and its position does not move
//!                  │
//!  not ready ──► a member names the partition, names none, or does not answer: its reason
//!            └─► all are ready or name others only, for 15 s on end: silent, a violation
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::audit::Lag;
use crate::without_numbers::without_numbers;

/// How long a partition may stand still without a reason: members tell of what takes ten seconds.
const STANDS_STILL: Duration = Duration::from_secs(15);
/// From then on members are asked for reasons.
const MAY_STAND: Duration = Duration::from_secs(1);
/// So often in a row nobody must give a reason: a member may just be about to say what it has seen,
/// and a partition about to move again.
const SILENT_POLLS: u32 = 3;
const SILENT_KEPT: usize = 10;
const REASONS_KEPT: usize = 10;

#[derive(Clone, Debug, Default, Serialize)]
pub struct StandstillReport {
    /// How often positions were compared.
    pub looks: u64,
    /// How often they could not be: Kafka or ClickHouse did not answer.
    pub skipped: u64,
    /// How often a partition stood still while no aggregator and no sink gave a reason.
    pub silent: u64,
    pub first_silent: Vec<SilentStandstill>,
    /// How often a partition stood still and somebody gave a reason, or did not answer.
    pub with_reason: u64,
    /// What they said, numbers apart; the first few.
    pub reasons: BTreeSet<String>,
}

/// Times are seconds since the run began.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SilentStandstill {
    pub at: f64,
    pub partition: usize,
    pub since: f64,
    /// The next offset by the ledger's sum and by its maximum; none if nothing is stored.
    pub stored: Option<(i64, i64)>,
    /// Kafka's end of the partition.
    pub end: i64,
}

#[derive(Default)]
pub(crate) struct StandstillJudge {
    lagging: BTreeMap<usize, LaggingPartition>,
    report: StandstillReport,
}

struct LaggingPartition {
    lag: Lag,
    /// When it was first seen to lack something at this position.
    since: Duration,
    /// Since when nobody has given a reason.
    unexplained_since: Duration,
    /// In a row.
    ready_polls: u32,
    has_reason: bool,
    is_silent: bool,
}

impl StandstillJudge {
    /// Takes what was seen, and says whether a partition may stand still. If so, members are
    /// asked, and [`StandstillJudge::answered`] is told.
    pub(crate) fn look(&mut self, at: Duration, lags: Vec<Lag>) -> bool {
        self.report.looks += 1;
        let mut before = std::mem::take(&mut self.lagging);
        for lag in lags {
            let lagging = match before.remove(&lag.partition) {
                Some(same) if same.lag.stored == lag.stored => LaggingPartition { lag, ..same },
                _ => LaggingPartition {
                    lag,
                    since: at,
                    unexplained_since: at,
                    ready_polls: 0,
                    has_reason: false,
                    is_silent: false,
                },
            };
            self.lagging.insert(lagging.lag.partition, lagging);
        }
        self.lagging.values().any(|lagging| at.saturating_sub(lagging.since) >= MAY_STAND)
    }

    /// Positions could not be compared this time: who harms Kafka or ClickHouse harms all, and it
    /// is not the members that are silent.
    pub(crate) fn skip(&mut self) {
        self.report.skipped += 1;
        self.lagging.values_mut().for_each(|lagging| lagging.ready_polls = 0);
    }

    /// What those members say that are not ready, at the time of the last look. Returns what is
    /// found silent by it.
    pub(crate) fn answered(
        &mut self,
        at: Duration,
        not_ready: &BTreeSet<String>,
    ) -> Vec<SilentStandstill> {
        let report = &mut self.report;
        let mut found = Vec::new();
        for still in self.lagging.values_mut() {
            let stands_still = |since| at.saturating_sub(since) >= STANDS_STILL;
            if not_ready.iter().any(|reason| is_reason_for(reason, still.lag.partition)) {
                still.ready_polls = 0;
                still.unexplained_since = at;
                report.with_reason += u64::from(!still.has_reason && stands_still(still.since));
                still.has_reason |= stands_still(still.since);
                continue;
            }
            if !stands_still(still.unexplained_since) {
                continue;
            }
            still.ready_polls += 1;
            if still.ready_polls >= SILENT_POLLS && !still.is_silent {
                still.is_silent = true;
                found.push(SilentStandstill {
                    at: at.as_secs_f64(),
                    partition: still.lag.partition,
                    since: still.since.as_secs_f64(),
                    stored: still.lag.stored,
                    end: still.lag.end,
                });
            }
        }
        report.silent += found.len() as u64;
        let room = SILENT_KEPT.saturating_sub(report.first_silent.len());
        report.first_silent.extend(found.iter().take(room).cloned());
        let is_told = self.lagging.values().any(|lagging| lagging.has_reason);
        for reason in not_ready.iter().filter(|_| is_told) {
            if report.reasons.len() < REASONS_KEPT {
                report.reasons.insert(without_numbers(reason));
            }
        }
        found
    }

    pub(crate) fn report(&self) -> StandstillReport {
        self.report.clone()
    }
}

/// Whether a reason may be that of the partition: it names it, or none at all.
fn is_reason_for(reason: &str, partition: usize) -> bool {
    let mut named = reason
        .split("artition")
        .skip(1)
        .flat_map(|after| {
            let end = after
                .find(|c: char| !matches!(c, 's' | ' ' | ',' | '[' | ']' | '{' | '}' | '0'..='9'));
            let numbers = after[..end.unwrap_or(after.len())].split(|c: char| !c.is_ascii_digit());
            numbers.filter_map(|number| number.parse::<usize>().ok()).collect::<Vec<_>>()
        })
        .peekable();
    named.peek().is_none() || named.any(|named| named == partition)
}

impl fmt::Display for SilentStandstill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SilentStandstill { at, partition, since, stored, end } = self;
        write!(f, "at {at:.1} s partition {partition}, since {since:.1} s: ")?;
        match stored {
            Some((sum, high)) => write!(f, "stored up to {high} (sum {sum}), ")?,
            None => write!(f, "nothing stored, ")?,
        }
        write!(f, "Kafka has {end}; no aggregator and no sink says why")
    }
}

impl fmt::Display for StandstillReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StandstillReport { looks, skipped, silent, first_silent, with_reason, reasons } = self;
        write!(
            f,
            "  standstills: {silent} silent, {with_reason} with a reason in /readyz; looked \
             {looks} times, {skipped} times in vain"
        )?;
        for silent in first_silent {
            write!(f, "\n  SILENT {silent}")?;
        }
        for reason in reasons {
            write!(f, "\n  stood still, and told: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A partition in the middle of its way.
    fn lag(partition: usize, stored: i64) -> Lag {
        Lag { partition, stored: Some((stored, stored)), end: 100 }
    }

    /// Polls each half second, from the first to before the last second: what lags, and who is not
    /// ready.
    fn poll(
        judge: &mut StandstillJudge,
        seconds: std::ops::Range<u64>,
        lags: &[Lag],
        not_ready: &[&str],
    ) {
        let not_ready = not_ready.iter().map(|reason| String::from(*reason)).collect();
        for half in seconds.start * 2..seconds.end * 2 {
            let at = Duration::from_millis(half * 500);
            if judge.look(at, lags.to_vec()) {
                judge.answered(at, &not_ready);
            }
        }
    }

    #[test]
    fn a_partition_that_nobody_tells_of_is_silent_once() {
        let mut judge = StandstillJudge::default();
        poll(&mut judge, 0..60, &[lag(0, 5), lag(3, 7)], &[]);
        let report = judge.report();
        assert_eq!((report.looks, report.silent, report.with_reason), (120, 2, 0));
        let first =
            SilentStandstill { at: 16.0, partition: 0, since: 0.0, stored: Some((5, 5)), end: 100 };
        assert_eq!(report.first_silent[0], first);
        // Once it has moved, it may stand still again.
        poll(&mut judge, 60..80, &[lag(0, 6)], &[]);
        assert_eq!(judge.report().silent, 3);
    }

    #[test]
    fn a_partition_that_nothing_was_ever_stored_of_can_be_silent() {
        let mut judge = StandstillJudge::default();
        poll(&mut judge, 0..20, &[Lag { partition: 4, stored: None, end: 1 }], &[]);
        assert_eq!(judge.report().silent, 1);
    }

    #[test]
    fn a_partition_that_moves_or_has_all_does_not_stand_still() {
        let mut judge = StandstillJudge::default();
        for second in 0..40 {
            let stored = i64::try_from(second / 10).unwrap();
            poll(&mut judge, second..second + 1, &[lag(0, stored)], &["sink: no"]);
        }
        // As long as it has all it may stay where it is.
        for start in [40, 60, 80] {
            poll(&mut judge, start..start + 10, &[], &["sink: no"]);
            poll(&mut judge, start + 10..start + 20, &[lag(0, 9)], &["sink: no"]);
        }
        let report = judge.report();
        assert_eq!((report.silent, report.with_reason, report.reasons.len()), (0, 0, 0));
    }

    #[test]
    fn a_member_that_is_not_ready_is_a_reason() {
        let mut judge = StandstillJudge::default();
        poll(&mut judge, 0..30, &[lag(0, 5)], &["sink: partition 0"]);
        // Twice only before it moves.
        poll(&mut judge, 30..31, &[lag(0, 5)], &[]);
        poll(&mut judge, 31..32, &[lag(0, 6)], &[]);
        let report = judge.report();
        assert_eq!((report.silent, report.with_reason), (0, 1));
        assert_eq!(report.reasons, BTreeSet::from([String::from("sink: partition #")]));
    }

    #[test]
    fn the_reason_of_another_partition_is_none() {
        for (reason, named) in [
            ("sink: ClickHouse takes blocks: partition 5: refused", vec![5]),
            (
                "sink: no partition stands still: partitions {1, 3} stopped; the last one",
                vec![1, 3],
            ),
            ("sink: no partition stands still: partitions [0] stopped", vec![0]),
            ("aggregator: flushes commit: timed out after 10 s", (0..9).collect()),
            ("sink: does not answer", (0..9).collect()),
        ] {
            let found: Vec<_> = (0..9).filter(|number| is_reason_for(reason, *number)).collect();
            assert_eq!(found, named, "{reason}");
        }
        let mut judge = StandstillJudge::default();
        poll(&mut judge, 0..30, &[lag(0, 5), lag(3, 5)], &["sink: partition 3 is refused"]);
        assert_eq!((judge.report().silent, judge.report().with_reason), (1, 1));
    }

    #[test]
    fn a_reason_that_went_away_excuses_no_longer() {
        let mut judge = StandstillJudge::default();
        poll(&mut judge, 0..30, &[lag(0, 5)], &["sink: partition 0"]);
        poll(&mut judge, 30..44, &[lag(0, 5)], &[]);
        assert_eq!((judge.report().silent, judge.report().with_reason), (0, 1));
        poll(&mut judge, 44..47, &[lag(0, 5)], &[]);
        assert_eq!((judge.report().silent, judge.report().with_reason), (1, 1));
    }

    #[test]
    fn polls_in_vain_are_none_of_the_three_in_a_row() {
        let mut judge = StandstillJudge::default();
        poll(&mut judge, 0..16, &[lag(0, 5)], &[]);
        for second in 16..30 {
            judge.skip();
            poll(&mut judge, second..second + 1, &[lag(0, 5)], &[]);
        }
        assert_eq!((judge.report().silent, judge.report().skipped), (0, 14));
        poll(&mut judge, 30..31, &[lag(0, 5)], &[]);
        assert_eq!(judge.report().silent, 1);
    }
}
