use std::collections::BTreeSet;

use crate::fault::FaultKind;

/// What a fault is allowed to hold up. Beside it, partitions are to stay as fresh as ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FaultScope {
    Everything,
    Partitions(BTreeSet<i32>),
    /// No partition that already has its schemas.
    Nothing,
}

impl FaultScope {
    /// Of a fault of this kind that does not say which partitions it concerns.
    pub(crate) fn of(kind: FaultKind) -> FaultScope {
        match kind {
            FaultKind::KillRegistry
            | FaultKind::SleepRegistry
            | FaultKind::EmptyRegistry
            | FaultKind::KillGateway
            | FaultKind::AddPartition
            | FaultKind::StepClock => FaultScope::Nothing,
            _ => FaultScope::Everything,
        }
    }

    pub(crate) fn excludes(&self, partition: i32) -> bool {
        match self {
            FaultScope::Everything => false,
            FaultScope::Partitions(partitions) => !partitions.contains(&partition),
            FaultScope::Nothing => true,
        }
    }
}
