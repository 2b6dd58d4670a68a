use std::fmt;

/// Why a message was not counted. A closed set: each goes into the rejected message's header and into the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Not in the Confluent wire format: no magic byte and schema id.
    NotFramed,
    /// The registry does not know the writer schema's id.
    UnknownSchema,
    /// The writer schema cannot be read as an increment or a batch.
    IncompatibleSchema,
    /// The bytes are not what the writer schema says.
    Undecodable,
    /// The namespace is Tally's own.
    ReservedNamespace,
    /// A namespace or key is empty or longer than [`crate::Fold::MAX_NAME_BYTES`].
    NameOutOfRange,
    /// The event time is before 1970 or after 2106.
    EventTimeOutOfRange,
    /// The sum would not fit 64 bits.
    Overflow,
}

impl Reject {
    pub const ALL: [Reject; 8] = [
        Reject::NotFramed,
        Reject::UnknownSchema,
        Reject::IncompatibleSchema,
        Reject::Undecodable,
        Reject::ReservedNamespace,
        Reject::NameOutOfRange,
        Reject::EventTimeOutOfRange,
        Reject::Overflow,
    ];

    /// The name in headers and metrics; never changes once released.
    pub fn as_str(self) -> &'static str {
        match self {
            Reject::NotFramed => "not_framed",
            Reject::UnknownSchema => "unknown_schema",
            Reject::IncompatibleSchema => "incompatible_schema",
            Reject::Undecodable => "undecodable",
            Reject::ReservedNamespace => "reserved_namespace",
            Reject::NameOutOfRange => "name_out_of_range",
            Reject::EventTimeOutOfRange => "event_time_out_of_range",
            Reject::Overflow => "overflow",
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
