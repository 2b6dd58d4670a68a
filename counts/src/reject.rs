use std::fmt;

/// Why a message was not counted. A closed set: each goes into the rejected message's header and
/// into the metrics.
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
    /// The event time is later than the message by more than [`crate::Rules::max_future_s`].
    FutureEventTime,
    /// Its deltas alone could take half of a batch: see [`crate::Fold::MAX_MESSAGE_DELTAS_BYTES`].
    TooLarge,
    /// The sum would not fit 64 bits.
    Overflow,
}

impl Reject {
    pub const ALL: [Reject; 10] = [
        Reject::NotFramed,
        Reject::UnknownSchema,
        Reject::IncompatibleSchema,
        Reject::Undecodable,
        Reject::ReservedNamespace,
        Reject::NameOutOfRange,
        Reject::EventTimeOutOfRange,
        Reject::FutureEventTime,
        Reject::TooLarge,
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
            Reject::FutureEventTime => "future_event_time",
            Reject::TooLarge => "too_large",
            Reject::Overflow => "overflow",
        }
    }

    /// The reason of this name.
    pub fn named(name: &str) -> Option<Reject> {
        Reject::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Whether it was for its schema, so that nobody knows what is in it.
    pub fn is_of_schema(self) -> bool {
        matches!(self, Reject::UnknownSchema | Reject::IncompatibleSchema)
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_name_of_its_own() {
        for reason in Reject::ALL {
            assert_eq!(Reject::named(reason.as_str()), Some(reason));
        }
        assert_eq!(Reject::named("bad_luck"), None);
    }
}
