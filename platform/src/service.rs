//! The five services of an installation.

use strum::{Display, EnumIter, EnumString, IntoStaticStr};

/// A service. `tally sink` runs [`Service::Sink`], and so on by [`Service::command`]. The order is
/// the way of an increment.
///
/// ```
/// use tally_platform::service::Service;
///
/// assert_eq!(Service::Producer.name(), "producer");
/// assert_eq!("sink".parse(), Ok(Service::Sink));
/// assert_eq!(format!("{:>8}", Service::Reader), "  reader");
/// ```
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Display,
    EnumIter,
    EnumString,
    IntoStaticStr,
)]
#[strum(serialize_all = "snake_case")]
pub enum Service {
    /// The HTTP gateway.
    Producer,
    Aggregator,
    Sink,
    Reader,
    /// The reconciler that verifies for ever.
    Watch,
}

impl Service {
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The words of the command that runs it.
    pub fn command(self) -> &'static [&'static str] {
        match self {
            Service::Producer => &["producer"],
            Service::Aggregator => &["aggregator"],
            Service::Sink => &["sink"],
            Service::Reader => &["reader"],
            Service::Watch => &["reconciler", "watch"],
        }
    }

    /// The key of the environment that says where it serves health and metrics.
    pub fn health_variable(self) -> String {
        let section = if self == Service::Watch { "reconciler" } else { self.name() };
        format!("TALLY_{}__HEALTH", section.to_uppercase())
    }
}
