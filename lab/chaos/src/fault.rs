use clap::ValueEnum;
use serde::Serialize;
use strum::Display;

/// What can go wrong. The names are those of `--faults`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Display,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
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
    /// The disk of a broker is full until it has ended; it comes back with room.
    FullDisk,
    /// SIGKILL the store while inserts are on their way to it.
    KillStore,
    /// SIGKILL the registry; it comes back after a while.
    KillRegistry,
    /// SIGSTOP the registry for longer than its clients wait, then SIGCONT.
    SleepRegistry,
    /// The registry loses its data, and gets it back.
    EmptyRegistry,
    /// The store refuses the blocks of one partition.
    RefusePartition,
    /// SIGKILL the gateway; it comes back after a while.
    KillGateway,
    /// SIGKILL the reader; it comes back after a while.
    KillReader,
    /// A client writes a message of some kilobytes that is hundreds of megabytes once it is
    /// decompressed.
    PoisonBatch,
    /// `increments` and `deltas` get one more partition.
    AddPartition,
    /// The event clock jumps, and jumps back.
    StepClock,
    /// The wall clock of one process is stepped, and stepped back; its monotonic clock goes on.
    StepMachineClock,
    /// Connections between two sides are cut, new ones refused.
    CutLink,
    /// One aggregator or sink loses its connections to every broker and to the store; the others of
    /// its side keep theirs.
    CutOffMember,
    /// Everything between two sides takes longer.
    DelayLink,
    /// Connections between two sides stay, but nothing comes through.
    StallLink,
    /// Few bytes a second pass between one side and a broker.
    SlowLink,
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
pub(crate) enum FaultLane {
    Aggregators,
    Sinks,
    Brokers,
    Surroundings,
    Links,
    Store,
    Registry,
}

impl FaultLane {
    pub(crate) const ALL: [FaultLane; 7] = [
        FaultLane::Aggregators,
        FaultLane::Sinks,
        FaultLane::Brokers,
        FaultLane::Surroundings,
        FaultLane::Links,
        FaultLane::Store,
        FaultLane::Registry,
    ];

    /// Between two faults, seconds: the least and the most. After a broker's, the system gets time
    /// to go on: what never works is not put to the test.
    pub(crate) fn gap(self) -> (f64, f64) {
        match self {
            FaultLane::Brokers => (5.0, 15.0),
            FaultLane::Aggregators => (2.0, 8.0),
            FaultLane::Sinks | FaultLane::Surroundings | FaultLane::Links => (1.0, 6.0),
            // Whoever waits for one of them stores nothing, or counts no new schema.
            FaultLane::Store | FaultLane::Registry => (4.0, 12.0),
        }
    }
}

impl FaultKind {
    pub fn all() -> &'static [FaultKind] {
        FaultKind::value_variants()
    }

    pub(crate) fn lane(self) -> FaultLane {
        self.lane_and_seconds().0
    }

    /// How long the fault lasts, seconds: the least and the most.
    pub(crate) fn seconds(self) -> (f64, f64) {
        self.lane_and_seconds().1
    }

    fn lane_and_seconds(self) -> (FaultLane, (f64, f64)) {
        use FaultKind::*;
        use FaultLane::*;
        match self {
            KillAggregator => (Aggregators, (0.0, 5.0)),
            StopAggregator => (Aggregators, (0.0, 3.0)),
            // The session is 6 s.
            SleepAggregator => (Aggregators, (7.0, 11.0)),
            TakeOver | RollAggregators => (Aggregators, (0.0, 1.0)),
            AddAggregator => (Aggregators, (3.0, 8.0)),
            KillSink => (Sinks, (0.0, 5.0)),
            StopSink => (Sinks, (0.0, 3.0)),
            // An oversleeping one at least so long: until the store has forgotten enough.
            SleepSink | OversleepSink => (Sinks, (7.0, 11.0)),
            AddSink => (Sinks, (3.0, 8.0)),
            RollSinks => (Sinks, (0.0, 1.0)),
            KillBroker | KillGroupCoordinator | KillTransactionCoordinator => (Brokers, (0.0, 6.0)),
            FullDisk => (Brokers, (0.0, 3.0)),
            SleepBroker => (Brokers, (2.0, 9.0)),
            KillStore => (Store, (0.0, 4.0)),
            // Long enough at times for the partition to count as one that stands still.
            RefusePartition => (Store, (3.0, 25.0)),
            KillRegistry => (Registry, (0.0, 4.0)),
            // Its clients wait for 5 s.
            SleepRegistry => (Registry, (6.0, 12.0)),
            EmptyRegistry => (Registry, (3.0, 8.0)),
            PoisonBatch | AddPartition => (Surroundings, (1.0, 3.0)),
            KillGateway | KillReader => (Surroundings, (0.0, 5.0)),
            StepClock => (Surroundings, (1.0, 4.0)),
            StepMachineClock => (Surroundings, (2.0, 8.0)),
            CutLink | StallLink => (Links, (1.0, 10.0)),
            CutOffMember => (Links, (3.0, 10.0)),
            DelayLink => (Links, (2.0, 8.0)),
            // Beyond the time that a transaction has.
            SlowLink => (Links, (8.0, 16.0)),
            // Beyond the clients' own patience of 4 s, so that they ask again.
            LateRequests => (Links, (7.0, 14.0)),
            // Several rounds of the producers that take turns.
            LateCommit => (Links, (10.0, 15.0)),
        }
    }
}
