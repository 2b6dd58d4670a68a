//! The rejected messages beside those that had to be.

use std::collections::BTreeMap;

use super::partition::Fate;
use super::{Evidence, kafka};
use crate::audit::content::Route;
use crate::audit::verdict::FindingKind;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::audit) struct Rejection {
    /// By its headers: where it came from, and why it is there.
    pub(in crate::audit) partition: i32,
    pub(in crate::audit) offset: i64,
    pub(in crate::audit) reason: String,
    pub(in crate::audit) payload: Vec<u8>,
}

impl Evidence<'_> {
    pub(in crate::audit) fn rejection(&mut self, rejection: Rejection) {
        let number = usize::try_from(rejection.partition).ok();
        match number.and_then(|number| self.partitions.get_mut(number)) {
            Some(partition) => partition.rejections.push(rejection),
            None => {
                let what = format_args!("increments has no partition {}", rejection.partition);
                self.audit.findings.add(FindingKind::Rejected, None, what);
            }
        }
    }

    pub(super) fn judge_rejected(&mut self, number: usize) {
        let partition = &self.partitions[number];
        let findings = &mut self.audit.findings;
        let mut times: BTreeMap<i64, u64> = BTreeMap::new();
        for rejection in &partition.rejections {
            let Rejection { offset, reason, payload, .. } = rejection;
            let at = Some((kafka(number), *offset));
            *times.entry(*offset).or_insert(0) += 1;
            let Some(seen) = partition.at(*offset) else {
                findings.add(
                    FindingKind::Rejected,
                    at,
                    format_args!("{reason}: there is no such message"),
                );
                continue;
            };
            let entry = seen.mark.map(|mark| &self.record.entries[mark as usize]);
            let bad = entry.filter(|entry| entry.way == Route::Bad);
            let bad = bad.map(|entry| self.record.plan.bad(entry.number, entry.clock_ms));
            match bad {
                Some(bad) if bad.reason != reason => {
                    findings.add(
                        FindingKind::Rejected,
                        at,
                        format_args!("{reason}, but it is {}", bad.reason),
                    );
                }
                Some(bad) if bad.copy() != payload => {
                    findings.add(
                        FindingKind::Rejected,
                        at,
                        format_args!("{reason}: not the original bytes"),
                    );
                }
                Some(_) => {}
                None if seen.fate == Fate::Rejected => {}
                None => {
                    let of = entry
                        .map_or_else(|| String::from("a foreign message"), ToString::to_string);
                    findings.add(
                        FindingKind::Rejected,
                        at,
                        format_args!("{reason}, but it is sound: {of}"),
                    );
                }
            }
        }
        for (offset, times) in times.iter().filter(|(_, times)| **times > 1) {
            findings.add(
                FindingKind::Rejected,
                Some((kafka(number), *offset)),
                format_args!("{times} times"),
            );
        }
        // A message is rejected with the batch that covers it.
        let covered = partition.between(partition.begin, partition.covered());
        let missing = covered.iter().filter(|seen| seen.fate == Fate::Rejected);
        for seen in missing.filter(|seen| !times.contains_key(&seen.offset)) {
            findings.add(FindingKind::Rejected, Some((kafka(number), seen.offset)), "not there");
        }
    }
}
