use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::audit::{Audit, ReadReport};
use crate::fault::FaultKind;
use crate::history::FaultCounts;
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
    pub faults: BTreeMap<FaultKind, FaultCounts>,
    /// Members that ended by themselves and were started again, by reason.
    pub ended: BTreeMap<String, u64>,
    /// Lines of the members' logs that no fault excuses.
    pub bugs: Vec<String>,
    pub broken: Vec<String>,
    /// How long after the last fault the store held everything; or what it lacked when the time was
    /// up.
    pub converged: Result<Duration, String>,
    pub audit: Audit,
    pub reads: ReadReport,
    pub verified: VerifyOutput,
}

impl Report {
    /// A wrong count is wrong, whatever else broke. What did not come to rest is the system's fault
    /// only if the harness did all of its work, healing included.
    pub fn verdict(&self) -> Verdict {
        let wrong = self.verified.code == Some(1) || !self.bugs.is_empty();
        let lacks = !self.audit.is_clean() || !self.reads.is_clean();
        if wrong || (lacks && self.converged.is_ok()) {
            Verdict::Failed
        } else if !self.broken.is_empty() {
            Verdict::Unknown
        } else if self.converged.is_err() {
            Verdict::Failed
        } else if self.verified.code != Some(0) || self.struck() == 0 {
            Verdict::Unknown
        } else {
            Verdict::Passed
        }
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
        for bug in &self.bugs {
            writeln!(f, "  no fault excuses: {bug}")?;
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
        write!(f, "  verify: exit code {:?}\n{}", self.verified.code, self.verified.said)
    }
}
