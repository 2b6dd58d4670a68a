use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// What can go wrong. The names are those of `--faults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// SIGKILL an aggregator; it comes back after a while.
    KillAggregator,
    /// SIGTERM an aggregator; it comes back after a while.
    StopAggregator,
    /// SIGSTOP an aggregator for longer than its session, then SIGCONT.
    SleepAggregator,
    /// Another process takes an aggregator's transactional.id over.
    TakeOver,
    /// One more aggregator for a while.
    AddAggregator,
    /// SIGTERM and start each aggregator, one after the other.
    RollAggregators,
    /// SIGKILL a sink; it comes back after a while.
    KillSink,
    /// SIGTERM a sink; it comes back after a while.
    StopSink,
    /// SIGSTOP a sink for longer than its session, then SIGCONT.
    SleepSink,
    /// SIGSTOP a sink until the store's memory of tokens has moved on, then SIGCONT.
    OversleepSink,
    /// One more sink for a while.
    AddSink,
    /// SIGTERM and start each sink, one after the other.
    RollSinks,
    /// SIGKILL a broker; it comes back after a while.
    KillBroker,
    /// SIGKILL the broker that coordinates the aggregators' group.
    KillGroupCoordinator,
    /// SIGKILL the broker that coordinates an aggregator's transactions.
    KillTransactionCoordinator,
    /// SIGSTOP a broker, then SIGCONT.
    SleepBroker,
    /// SIGKILL the store while inserts are on their way to it.
    KillStore,
    /// SIGKILL the registry; it comes back after a while.
    KillRegistry,
    /// SIGKILL the gateway; it comes back after a while.
    KillGateway,
    /// SIGKILL the reader; it comes back after a while.
    KillReader,
    /// The event clock jumps, and jumps back.
    StepClock,
    /// Connections between two sides are cut, new ones refused.
    CutLink,
    /// Everything between two sides takes longer.
    DelayLink,
    /// Connections between two sides stay, but nothing comes through.
    StallLink,
    /// What the aggregators ask of a transaction coordinator, EndTxn included, arrives late, their
    /// connections closed or not.
    LateRequests,
    /// A commit's EndTxn is kept on the way, sent again by its client, and arrives in the middle of
    /// the next transaction.
    LateCommit,
}

/// Faults of one lane come one after the other; lanes run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultLane {
    Aggregators,
    Sinks,
    Brokers,
    Surroundings,
    Links,
}

impl FaultLane {
    pub const ALL: [FaultLane; 5] = [
        FaultLane::Aggregators,
        FaultLane::Sinks,
        FaultLane::Brokers,
        FaultLane::Surroundings,
        FaultLane::Links,
    ];

    /// Between two faults, seconds: the least and the most. After a broker's, the system gets time
    /// to go on: what never works is not put to the test.
    pub(crate) fn gap(self) -> (f64, f64) {
        match self {
            FaultLane::Brokers => (5.0, 15.0),
            FaultLane::Aggregators => (2.0, 8.0),
            FaultLane::Sinks | FaultLane::Surroundings | FaultLane::Links => (1.0, 6.0),
        }
    }
}

impl FaultKind {
    pub fn all() -> &'static [FaultKind] {
        FaultKind::value_variants()
    }

    pub fn lane(self) -> FaultLane {
        match self {
            FaultKind::KillAggregator
            | FaultKind::StopAggregator
            | FaultKind::SleepAggregator
            | FaultKind::TakeOver
            | FaultKind::AddAggregator
            | FaultKind::RollAggregators => FaultLane::Aggregators,
            FaultKind::KillSink
            | FaultKind::StopSink
            | FaultKind::SleepSink
            | FaultKind::OversleepSink
            | FaultKind::AddSink
            | FaultKind::RollSinks => FaultLane::Sinks,
            FaultKind::KillBroker
            | FaultKind::KillGroupCoordinator
            | FaultKind::KillTransactionCoordinator
            | FaultKind::SleepBroker => FaultLane::Brokers,
            FaultKind::KillStore
            | FaultKind::KillRegistry
            | FaultKind::KillGateway
            | FaultKind::KillReader
            | FaultKind::StepClock => FaultLane::Surroundings,
            FaultKind::CutLink
            | FaultKind::DelayLink
            | FaultKind::StallLink
            | FaultKind::LateRequests
            | FaultKind::LateCommit => FaultLane::Links,
        }
    }

    /// How long the fault lasts, seconds: the least and the most.
    pub(crate) fn seconds(self) -> (f64, f64) {
        match self {
            FaultKind::KillAggregator
            | FaultKind::KillSink
            | FaultKind::KillGateway
            | FaultKind::KillReader => (0.0, 5.0),
            FaultKind::StopAggregator | FaultKind::StopSink => (0.0, 3.0),
            // The session is 6 s.
            FaultKind::SleepAggregator | FaultKind::SleepSink => (7.0, 11.0),
            // At least: until the store has forgotten enough.
            FaultKind::OversleepSink => (7.0, 11.0),
            FaultKind::TakeOver | FaultKind::RollAggregators | FaultKind::RollSinks => (0.0, 1.0),
            FaultKind::AddAggregator | FaultKind::AddSink => (3.0, 8.0),
            FaultKind::KillBroker
            | FaultKind::KillGroupCoordinator
            | FaultKind::KillTransactionCoordinator => (0.0, 6.0),
            FaultKind::SleepBroker => (2.0, 9.0),
            FaultKind::KillStore | FaultKind::KillRegistry => (0.0, 4.0),
            FaultKind::StepClock => (1.0, 4.0),
            FaultKind::CutLink | FaultKind::StallLink => (1.0, 10.0),
            FaultKind::DelayLink => (2.0, 8.0),
            // Beyond the clients' own patience of 4 s, so that they ask again.
            FaultKind::LateRequests => (7.0, 14.0),
            // Several rounds of the producers that take turns.
            FaultKind::LateCommit => (10.0, 15.0),
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("every kind has a name");
        f.pad(value.get_name())
    }
}
