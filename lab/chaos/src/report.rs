use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::audit::{Audit, ReadReport};
use crate::fault::FaultKind;
use crate::freshness::FreshnessReport;
use crate::history::FaultCounts;
use crate::memory::MemoryReport;
use crate::standstill::StandstillReport;
use crate::world::VerifyOutput;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Passed,
    /// An increment was lost or doubled, or the system did not come to rest.
    Failed,
    /// The harness could not do its work, so nothing is known.
    Unknown,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub took: Duration,
    /// Of each kind that was to strike.
    pub faults: BTreeMap<FaultKind, FaultCounts>,
    /// Members that ended by themselves and were started again, by reason.
    pub ended: BTreeMap<String, u64>,
    pub memory: MemoryReport,
    /// Lines of the members' logs that no fault excuses.
    pub bugs: Vec<String>,
    pub broken: Vec<String>,
    /// How long after the last fault the store held everything; or what it lacked when the time was
    /// up.
    pub converged: Result<Duration, String>,
    pub audit: Audit,
    pub reads: ReadReport,
    pub standstills: StandstillReport,
    pub freshness: FreshnessReport,
    pub verified: VerifyOutput,
}

impl Report {
    /// A wrong count or answer is wrong, whatever else broke, and so is a partition that stood
    /// still while every member said that it is ready. What did not come to rest is the
    /// system's fault only if the harness did all of its work, healing included. A run that shows
    /// nothing is no pass.
    pub fn verdict(&self) -> Verdict {
        let wrong = self.verified.code == Some(1)
            || !self.bugs.is_empty()
            || !self.memory.beyond().is_empty()
            || self.audit.is_wrong()
            || self.reads.violated > 0
            || self.standstills.silent > 0;
        let lacks = !self.audit.is_clean() || !self.reads.is_clean();
        if wrong || (lacks && self.converged.is_ok()) {
            Verdict::Failed
        } else if !self.broken.is_empty() {
            Verdict::Unknown
        } else if self.converged.is_err() {
            Verdict::Failed
        } else if self.verified.code != Some(0) || !self.shows_nothing().is_empty() {
            Verdict::Unknown
        } else {
            Verdict::Passed
        }
    }

    /// Why the run, whatever it came to, shows less than it should.
    fn shows_nothing(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.audit.sent.acknowledged == 0 {
            reasons.push(String::from("nothing was acknowledged"));
        }
        if self.reads.answered == 0 {
            reasons.push(String::from("no read was answered"));
        }
        if self.standstills.looks == 0 {
            reasons.push(String::from("nobody saw whether a partition stands still"));
        }
        let never = self.faults.iter().filter(|(_, counts)| counts.struck == 0);
        let never: Vec<String> = never.map(|(kind, _)| kind.to_string()).collect();
        if self.faults.is_empty() {
            reasons.push(String::from("no fault was to strike"));
        } else if !never.is_empty() {
            reasons.push(format!("never struck: {}", never.join(", ")));
        }
        reasons
    }

    pub fn struck(&self) -> u64 {
        self.faults.values().map(|tally| tally.struck).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict() {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Unknown => "UNKNOWN",
        };
        writeln!(f, "seed {}: {verdict} after {:.0} s", self.seed, self.took.as_secs_f64())?;
        writeln!(f, "  {:<30} {:>7} {:>9}", "faults", "struck", "unproven")?;
        for (kind, FaultCounts { struck, unproven }) in &self.faults {
            writeln!(f, "  {:<30} {struck:>7} {unproven:>9}", kind.to_string())?;
        }
        let unproven: u64 = self.faults.values().map(|tally| tally.unproven).sum();
        writeln!(f, "  {:<30} {:>7} {unproven:>9}", "in all", self.struck())?;
        for (reason, times) in &self.ended {
            writeln!(f, "  ended by itself {times} times: {reason}")?;
        }
        writeln!(f, "{}", self.memory)?;
        for bug in &self.bugs {
            writeln!(f, "  no fault excuses: {bug}")?;
        }
        for reason in self.shows_nothing() {
            writeln!(f, "  shows too little: {reason}")?;
        }
        for broken in &self.broken {
            writeln!(f, "  could not be done: {broken}")?;
        }
        match &self.converged {
            Ok(after) => writeln!(
                f,
                "  everything stored {:.1} s after the last fault",
                after.as_secs_f64()
            )?,
            Err(behind) => writeln!(f, "  NOT everything stored in time: {behind}")?,
        }
        writeln!(f, "{}", self.audit)?;
        writeln!(f, "{}", self.reads)?;
        writeln!(f, "{}", self.standstills)?;
        writeln!(f, "{}", self.freshness)?;
        write!(f, "  verify: exit code {:?}\n{}", self.verified.code, self.verified.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run with nothing wrong.
    fn report() -> Report {
        let mut audit = Audit::default();
        audit.sent.acknowledged = 5;
        let reads = ReadReport { answered: 5, ..ReadReport::default() };
        let struck = FaultCounts { struck: 1, unproven: 0 };
        Report {
            seed: 1,
            took: Duration::from_secs(9),
            faults: BTreeMap::from([(FaultKind::KillSink, struck)]),
            ended: BTreeMap::new(),
            memory: MemoryReport::default(),
            bugs: Vec::new(),
            broken: Vec::new(),
            converged: Ok(Duration::from_secs(1)),
            audit,
            reads,
            standstills: StandstillReport { looks: 5, ..StandstillReport::default() },
            freshness: FreshnessReport::default(),
            verified: VerifyOutput { code: Some(0), said: String::new() },
        }
    }

    fn verdict(change: impl FnOnce(&mut Report)) -> Verdict {
        let mut report = report();
        change(&mut report);
        report.verdict()
    }

    #[test]
    fn a_wrong_count_is_a_failure_whatever_else_broke() {
        let did_not_end_well = |report: &mut Report| {
            report.converged = Err(String::from("partition 1 is behind"));
            report.broken.push(String::from("a broker did not start"));
        };
        assert_eq!(verdict(did_not_end_well), Verdict::Unknown);
        for wrong in [
            |report: &mut Report| report.audit.wrong_counters = 1,
            |report: &mut Report| report.audit.lost = 1,
            |report: &mut Report| report.audit.doubled = 1,
            |report: &mut Report| report.reads.violated = 1,
            |report: &mut Report| report.standstills.silent = 1,
            |report: &mut Report| report.verified.code = Some(1),
            |report: &mut Report| report.bugs.push(String::from("panicked")),
        ] {
            let both = verdict(|report| {
                did_not_end_well(report);
                wrong(report);
            });
            assert_eq!((verdict(wrong), both), (Verdict::Failed, Verdict::Failed));
        }
    }

    #[test]
    fn what_did_not_come_to_rest_is_a_failure_unless_the_harness_failed() {
        for lacks in [
            |report: &mut Report| report.audit.behind = 1,
            |report: &mut Report| report.reads.silent = 1,
            |report: &mut Report| report.converged = Err(String::from("behind")),
        ] {
            assert_eq!(verdict(lacks), Verdict::Failed);
        }
        let late = |report: &mut Report| {
            report.converged = Err(String::from("behind"));
            report.audit.behind = 1;
            report.reads.silent = 1;
        };
        assert_eq!(verdict(late), Verdict::Failed);
        let broken = verdict(|report| {
            late(report);
            report.broken.push(String::from("a broker did not start"));
        });
        assert_eq!(broken, Verdict::Unknown);
    }

    #[test]
    fn a_run_that_shows_nothing_is_no_pass() {
        assert_eq!(verdict(|_| {}), Verdict::Passed);
        for nothing in [
            |report: &mut Report| report.audit.sent.acknowledged = 0,
            |report: &mut Report| report.reads.answered = 0,
            |report: &mut Report| report.standstills.looks = 0,
            |report: &mut Report| report.faults.clear(),
            |report: &mut Report| report.verified.code = Some(3),
            |report: &mut Report| {
                report.faults.insert(FaultKind::KillStore, FaultCounts { struck: 0, unproven: 4 });
            },
        ] {
            assert_eq!(verdict(nothing), Verdict::Unknown);
        }
    }
}
