//! Each kind of damage is found, and told from the others.

mod log;
mod pipeline;
mod run_fixture;

use std::collections::BTreeSet;

use crate::audit::verdict::{Audit, FindingKind};

fn wrong(audit: &Audit) -> BTreeSet<FindingKind> {
    assert!(!audit.is_clean(), "nothing was found");
    audit.findings.listed.iter().map(|finding| finding.kind).collect()
}

#[track_caller]
fn expect(audit: &Audit, kinds: &[FindingKind], lost: u64, doubled: u64) {
    assert_eq!(wrong(audit), kinds.iter().copied().collect(), "{audit}");
    assert_eq!((audit.lost, audit.doubled), (lost, doubled), "{audit}");
}
