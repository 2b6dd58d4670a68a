use std::fmt;

/// Who talks. Each side has links of its own to the peers that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    Aggregators,
    Sinks,
    Gateways,
    Readers,
    Load,
    /// The other brokers and controllers.
    Brokers,
}

impl Side {
    /// Those that are clients of the brokers, each with a listener of its own there.
    pub(super) const CLIENTS: [Side; 5] =
        [Side::Aggregators, Side::Sinks, Side::Gateways, Side::Readers, Side::Load];

    pub fn name(self) -> &'static str {
        match self {
            Side::Aggregators => "aggregators",
            Side::Sinks => "sinks",
            Side::Gateways => "gateways",
            Side::Readers => "readers",
            Side::Load => "load",
            Side::Brokers => "brokers",
        }
    }

    pub(super) fn asks_registry(self) -> bool {
        match self {
            Side::Aggregators | Side::Gateways | Side::Readers | Side::Load => true,
            Side::Sinks | Side::Brokers => false,
        }
    }

    pub(super) fn asks_store(self) -> bool {
        match self {
            Side::Sinks | Side::Readers => true,
            Side::Aggregators | Side::Gateways | Side::Load | Side::Brokers => false,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
