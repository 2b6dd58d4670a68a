//! Compares what replays came to with what ClickHouse has, and with what is allowed.

use tally_counts::{KeyedFingerprint, Reject};
use tally_platform::store::{StoredCounts, WholeCounts};

use super::{Replayed, Rounds};
use crate::narrow::narrow;
use crate::report::Finding;
use crate::{PartitionReport, Verdict};

impl Rounds {
    /// Compares what a replay came to with what ClickHouse has; returns whether the counts agree.
    pub(super) fn compare(
        &self,
        partition: i32,
        stored: &StoredCounts,
        replayed: &mut Replayed,
    ) -> bool {
        let StoredCounts { ledger, whole, quick } = stored;
        let Replayed { totals, fingerprints: expected, findings, .. } = replayed;
        let differing: Vec<usize> = match whole {
            Some(WholeCounts { fingerprints, .. }) => (0..KeyedFingerprint::RANGES)
                .filter(|range| fingerprints[*range] != expected[*range])
                .collect(),
            None if replayed.quick == Some(*quick) => Vec::new(),
            None => (0..KeyedFingerprint::RANGES).collect(),
        };
        if !differing.is_empty() {
            findings.add(Finding::Fingerprint { ranges: differing.len() });
        }
        let rejections: u64 = totals.rejected.values().sum();
        // The quick fingerprint covers events too.
        let events = whole.as_ref().map_or(totals.events, |whole| whole.events);
        let accounts: [(&str, i128, i128); 6] = [
            ("messages counted", ledger.counted.into(), totals.counted.into()),
            ("messages duplicate", ledger.duplicate.into(), totals.duplicate.into()),
            ("messages rejected", ledger.rejected.into(), rejections.into()),
            ("increments", ledger.counted_increments.into(), totals.increments.into()),
            ("events of the counts", events, totals.events),
            (
                "messages seen",
                i128::from(ledger.counted)
                    + i128::from(ledger.duplicate)
                    + i128::from(ledger.rejected),
                totals.messages.into(),
            ),
        ];
        for (what, stored, replayed) in accounts {
            if stored != replayed {
                findings.add(Finding::Accounting { what, stored, replayed });
            }
        }
        // Each round would replay the partition twice more, to name the same counters again.
        let is_named = self.kept.is_some() && self.mismatched.contains(&partition);
        if !differing.is_empty() && !is_named && whole.is_some() {
            match narrow(self, partition, self.salt_of(partition), &differing) {
                Ok(counters) => counters.into_iter().for_each(|counter| findings.add(counter)),
                Err(error) => findings.add(Finding::NotNarrowed { reason: error.to_string() }),
            }
        }
        differing.is_empty()
    }

    pub(super) fn limit_rejected(&self, partitions: &mut [PartitionReport]) {
        let Some(allowed) = self.options.max_rejected else { return };
        for p in partitions {
            let of_schema =
                |reason: &str| reason.parse::<Reject>().is_ok_and(|reason| reason.is_of_schema());
            let refused = p.rejected_by_reason.iter().filter(|(reason, _)| !of_schema(reason));
            let rejected = refused.map(|(_, count)| count).sum();
            if rejected > allowed {
                p.findings.push(Finding::TooManyRejected { rejected, allowed });
                p.verdict = Verdict::Mismatch;
            }
        }
    }
}
