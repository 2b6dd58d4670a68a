use strum::VariantArray;

/// Why a message was not counted. A closed set: each goes into the rejected message's header and
/// into the metrics, by its name, which never changes once released.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "snake_case")]
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
    /// The event time is before [`crate::Rules::min_event_s`] or after 2106.
    EventTimeOutOfRange,
    /// The event time is later than the message by more than [`crate::Rules::max_future_s`].
    FutureEventTime,
    /// Its deltas alone could take half of a batch: see [`crate::Fold::MAX_MESSAGE_DELTAS_BYTES`].
    TooLarge,
    /// The sum would not fit 64 bits. Only versions of Tally whose sums had 64 bits rejected so; it
    /// is here so that their rejections can be read.
    Overflow,
}

impl Reject {
    pub const ALL: &'static [Reject] = Reject::VARIANTS;

    /// The name in headers and metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether the message was rejected for its schema, so that nobody knows what is in it.
    pub fn is_of_schema(self) -> bool {
        matches!(self, Reject::UnknownSchema | Reject::IncompatibleSchema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_name_of_its_own() {
        let names = [
            "not_framed",
            "unknown_schema",
            "incompatible_schema",
            "undecodable",
            "reserved_namespace",
            "name_out_of_range",
            "event_time_out_of_range",
            "future_event_time",
            "too_large",
            "overflow",
        ];
        assert_eq!(Reject::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>(), names);
        for reason in Reject::ALL {
            assert_eq!(reason.to_string(), reason.as_str());
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
        assert!("bad_luck".parse::<Reject>().is_err());
    }
}
