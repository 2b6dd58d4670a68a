//! The four services of an installation.

use strum::{Display, EnumIter, EnumString, IntoStaticStr};

/// A service, by the name of its command: `tally sink` runs [`Service::Sink`]. The order is the way
/// of an increment.
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
}

impl Service {
    pub fn name(self) -> &'static str {
        self.into()
    }
}
