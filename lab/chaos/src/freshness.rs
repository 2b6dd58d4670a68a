//! How fresh partitions are while nothing is wrong, and beside faults that do not concern them.
//!
//! ```text
//!  Inclusion: acknowledged ───────────► included
//!  faults:              ├── lasts ──┤ 2 s ┤          active meanwhile
//!
//!  none active:                       calm
//!  all active exclude the partition:  beside each of their kinds
//!  else:                              not used
//! ```
//!
//! For people to read: the verdict does not depend on how long things take.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::audit::Inclusion;
use crate::fault::FaultKind;
use crate::history::FaultWindow;

/// What a fault held up is made up for until then.
const AFTERMATH: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default, Serialize)]
pub struct FreshnessReport {
    pub calm: Option<Freshness>,
    /// Of partitions that the fault, and all that were active with it, do not concern.
    pub beside: BTreeMap<FaultKind, Freshness>,
    /// Samples of partitions that a fault may have held up.
    pub not_used: usize,
}

/// From a message's acknowledgement until a reader's position includes it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Freshness {
    pub samples: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// How many times the 99th percentile is that of the calm; none if there was no calm.
    pub p99_to_calm: Option<f64>,
}

pub(crate) fn freshness(inclusions: &[Inclusion], faults: &[FaultWindow]) -> FreshnessReport {
    let mut calm = Vec::new();
    let mut beside: BTreeMap<FaultKind, Vec<Duration>> = BTreeMap::new();
    let mut not_used = 0;
    for inclusion in inclusions {
        let took = inclusion.included.saturating_duration_since(inclusion.acknowledged);
        let active: Vec<&FaultWindow> =
            faults.iter().filter(|fault| was_active(fault, inclusion)).collect();
        if active.is_empty() {
            calm.push(took);
        } else if active.iter().all(|fault| fault.scope.excludes(inclusion.partition)) {
            let mut kinds: Vec<FaultKind> = active.iter().map(|fault| fault.kind).collect();
            kinds.sort();
            kinds.dedup();
            kinds.into_iter().for_each(|kind| beside.entry(kind).or_default().push(took));
        } else {
            not_used += 1;
        }
    }
    let calm = Freshness::of(calm, None);
    let beside = beside.into_iter().filter_map(|(kind, took)| {
        Some((kind, Freshness::of(took, calm.map(|calm| calm.p99_ms))?))
    });
    FreshnessReport { beside: beside.collect(), calm, not_used }
}

/// At any moment while the message waited.
fn was_active(fault: &FaultWindow, inclusion: &Inclusion) -> bool {
    fault.began <= inclusion.included
        && fault.healed.is_none_or(|healed| healed + AFTERMATH >= inclusion.acknowledged)
}

impl Freshness {
    /// None without a sample.
    fn of(mut took: Vec<Duration>, calm_p99_ms: Option<f64>) -> Option<Freshness> {
        took.sort();
        let percentile = |percent: usize| {
            let rank = (took.len() * percent).div_ceil(100).max(1);
            took.get(rank - 1).map(|took| took.as_secs_f64() * 1_000.0)
        };
        let (p50_ms, p99_ms) = (percentile(50)?, percentile(99)?);
        let p99_to_calm = calm_p99_ms.filter(|calm| *calm > 0.0).map(|calm| p99_ms / calm);
        Some(Freshness { samples: took.len(), p50_ms, p99_ms, p99_to_calm })
    }
}

impl fmt::Display for FreshnessReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {:<30} {:>7} {:>9} {:>9} {:>9}",
            "freshness", "samples", "p50 ms", "p99 ms", "to calm"
        )?;
        let calm = self.calm.iter().map(|calm| (String::from("calm"), calm));
        let beside = self.beside.iter().map(|(kind, beside)| (format!("beside {kind}"), beside));
        for (name, Freshness { samples, p50_ms, p99_ms, p99_to_calm }) in calm.chain(beside) {
            let to_calm = p99_to_calm.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            write!(f, "\n  {name:<30} {samples:>7} {p50_ms:>9.0} {p99_ms:>9.0} {to_calm:>9}")?;
        }
        write!(f, "\n  {:<30} {:>7}", "not used", self.not_used)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Instant;

    use super::*;
    use crate::fault_scope::FaultScope;

    const REFUSE: FaultKind = FaultKind::RefusePartition;
    const SLEEP: FaultKind = FaultKind::SleepRegistry;

    struct Clock(Instant);

    impl Clock {
        fn at(&self, seconds: u64) -> Instant {
            self.0 + Duration::from_secs(seconds)
        }

        fn fault(
            &self,
            kind: FaultKind,
            scope: FaultScope,
            began: u64,
            healed: Option<u64>,
        ) -> FaultWindow {
            let healed = healed.map(|healed| self.at(healed));
            FaultWindow { kind, scope, began: self.at(began), healed }
        }

        /// Which kinds a message that waited so long is beside; none if it is not used.
        fn label(
            &self,
            faults: &[FaultWindow],
            partition: i32,
            from: u64,
            to: u64,
        ) -> Option<Vec<FaultKind>> {
            let inclusion =
                Inclusion { partition, acknowledged: self.at(from), included: self.at(to) };
            let report = freshness(&[inclusion], faults);
            assert!(report.calm.is_none() || report.beside.is_empty());
            (report.not_used == 0).then(|| report.beside.into_keys().collect())
        }
    }

    #[test]
    fn a_sample_is_labelled_by_what_was_active_while_it_waited() {
        let clock = Clock(Instant::now());
        let of_1 = || FaultScope::Partitions(BTreeSet::from([1]));
        let faults = [
            clock.fault(REFUSE, of_1(), 10, Some(20)),
            clock.fault(SLEEP, FaultScope::Nothing, 18, Some(30)),
            clock.fault(FaultKind::KillStore, FaultScope::Everything, 28, Some(29)),
            clock.fault(REFUSE, of_1(), 50, None),
        ];
        let label = |partition, from, to| clock.label(&faults, partition, from, to);
        assert_eq!(label(0, 1, 9), Some(vec![]), "calm");
        assert_eq!(label(1, 1, 9), Some(vec![]), "calm");
        assert_eq!(label(0, 9, 11), Some(vec![REFUSE]));
        assert_eq!(label(0, 1, 35), None, "the store was killed meanwhile");
        assert_eq!(label(1, 9, 11), None, "its own fault");
        assert_eq!(label(0, 19, 20), Some(vec![SLEEP, REFUSE]));
        assert_eq!(label(1, 22, 23), None, "its own fault, in its aftermath");
        assert_eq!(label(1, 23, 24), Some(vec![SLEEP]));
        assert_eq!(label(0, 27, 28), None);
        assert_eq!(label(0, 32, 33), Some(vec![SLEEP]));
        assert_eq!(label(0, 33, 34), Some(vec![]));
        assert_eq!(label(0, 60, 61), Some(vec![REFUSE]), "never healed");
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank_and_held_against_the_calm() {
        let clock = Clock(Instant::now());
        let fault = clock.fault(SLEEP, FaultScope::Nothing, 1_000, None);
        let took = |from: u64, ms: u64| Inclusion {
            partition: 0,
            acknowledged: clock.at(from),
            included: clock.at(from) + Duration::from_millis(ms),
        };
        let calm = (1..=200).map(|ms| took(0, ms));
        let beside = (1..=100).map(|ms| took(1_000, 3 * ms));
        let report = freshness(&calm.chain(beside).collect::<Vec<_>>(), &[fault]);
        let calm = Freshness { samples: 200, p50_ms: 100.0, p99_ms: 198.0, p99_to_calm: None };
        let beside =
            Freshness { samples: 100, p50_ms: 150.0, p99_ms: 297.0, p99_to_calm: Some(1.5) };
        assert_eq!((report.calm, report.beside[&SLEEP]), (Some(calm), beside));
        let one = freshness(&[took(0, 7)], &[]).calm.unwrap();
        assert_eq!((one.p50_ms, one.p99_ms), (7.0, 7.0));
    }
}
