use std::fmt;

use tally_platform::service::Service;

/// Who talks. Each caller has links of its own to the peers that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caller {
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
    pub(super) const CLIENTS: [Caller; 5] =
        [Caller::Aggregators, Caller::Sinks, Caller::Gateways, Caller::Readers, Caller::Load];

    /// Whose links a service uses.
    pub(super) fn of(service: Service) -> Caller {
        match service {
            Service::Producer => Caller::Gateways,
            Service::Aggregator => Caller::Aggregators,
            Service::Sink => Caller::Sinks,
            Service::Reader => Caller::Readers,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Caller::Aggregators => "aggregators",
            Caller::Sinks => "sinks",
            Caller::Gateways => "gateways",
            Caller::Readers => "readers",
            Caller::Load => "load",
            Caller::Brokers => "brokers",
        }
    }

    pub(super) fn asks_registry(self) -> bool {
        match self {
            Caller::Aggregators | Caller::Gateways | Caller::Readers | Caller::Load => true,
            Caller::Sinks | Caller::Brokers => false,
        }
    }

    pub(super) fn asks_store(self) -> bool {
        match self {
            Caller::Sinks | Caller::Readers => true,
            Caller::Aggregators | Caller::Gateways | Caller::Load | Caller::Brokers => false,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
