use strum::{Display, IntoStaticStr};
use tally_platform::service::Service;

/// Who talks. Each caller has links of its own to the peers that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Caller {
    Aggregators,
    Sinks,
    Gateways,
    Readers,
    Load,
    /// The other brokers and controllers.
    Brokers,
}

impl Caller {
    /// Those that are clients of the brokers, each with a listener of its own there.
    pub(crate) const CLIENTS: [Caller; 5] =
        [Caller::Aggregators, Caller::Sinks, Caller::Gateways, Caller::Readers, Caller::Load];
    /// Those that ask the schema registry, and those that ask ClickHouse.
    pub(super) const OF_REGISTRY: [Caller; 4] =
        [Caller::Aggregators, Caller::Gateways, Caller::Readers, Caller::Load];
    pub(super) const OF_STORE: [Caller; 2] = [Caller::Sinks, Caller::Readers];

    /// Whose links a service uses.
    pub(crate) fn of(service: Service) -> Caller {
        match service {
            Service::Producer => Caller::Gateways,
            Service::Aggregator => Caller::Aggregators,
            Service::Sink => Caller::Sinks,
            Service::Reader | Service::Watch => Caller::Readers,
        }
    }
}
