use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::BucketWidth;

/// Everything besides the messages that decides what counts. The rules never change once a table
/// holds counts: a replay by other rules would come to other counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub width: BucketWidth,
    pub horizon: Horizon,
    /// How much later than Kafka's time of the message an event may be, in seconds.
    pub max_future_s: u32,
    /// The earliest second of an event, since 1970. A time that is earlier is nearly always one in
    /// another unit.
    pub min_event_s: u32,
    pub ids_within: IdScope,
}

/// Within what an increment's id counts once.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Deserialize,
    serde::Serialize,
    strum::Display,
    strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum IdScope {
    /// Its counter: two counters may use the same id.
    #[default]
    Counter,
    /// Its Kafka partition, as the first version of Tally had it. What an installation has counted
    /// so can be replayed only so.
    Partition,
}

/// For how long the ids of a partition are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// An id is forgotten once it was seen more than this number of offsets ago.
    pub offsets: u32,
    /// Only this number of ids, those seen last, are remembered.
    pub ids: NonZeroU32,
}

impl Horizon {
    /// The most ids that can be remembered. They take 5 GiB.
    pub const MAX_IDS: u32 = 1 << 27;
    pub const MILLION: Horizon = Horizon {
        offsets: 1_000_000,
        ids: NonZeroU32::new(1_000_000).expect("a million is not zero"),
    };
}

/// As a configuration has them by default, but that events may be of any time.
impl Default for Rules {
    fn default() -> Rules {
        Rules {
            width: BucketWidth::MINUTE,
            horizon: Horizon::MILLION,
            max_future_s: 86_400,
            min_event_s: 0,
            ids_within: IdScope::Counter,
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} are not rules of counting")]
pub struct RulesParseError(pub String);

/// The text of the rules: `name=value`, by the names of the configuration, joined by spaces.
impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rules { width, horizon, max_future_s, min_event_s, ids_within } = self;
        let Horizon { offsets, ids } = horizon;
        let width_s = width.as_secs();
        write!(
            f,
            "bucket_seconds={width_s} max_future_seconds={max_future_s} \
             horizon_offsets={offsets} max_ids={ids} ids_within={ids_within} \
             min_event_seconds={min_event_s}"
        )
    }
}

impl FromStr for Rules {
    type Err = RulesParseError;

    fn from_str(text: &str) -> Result<Rules, RulesParseError> {
        parse(text).ok_or_else(|| RulesParseError(text.to_owned()))
    }
}

/// Rules that an older text does not name are those that were in force when it was written. A name
/// that is not known is refused: it may be of a rule that this version does not count by.
fn parse(text: &str) -> Option<Rules> {
    let mut named = BTreeMap::new();
    for word in text.split(' ') {
        let (name, value) = word.split_once('=')?;
        named.insert(name, value).is_none().then_some(())?;
    }
    let min_event_s = named.remove("min_event_seconds").unwrap_or("0").parse().ok()?;
    let mut number = |name: &str| named.remove(name)?.parse().ok();
    let rules = Rules {
        min_event_s,
        width: BucketWidth::from_secs(number("bucket_seconds")?).ok()?,
        max_future_s: number("max_future_seconds")?,
        horizon: Horizon {
            offsets: number("horizon_offsets")?,
            ids: NonZeroU32::new(number("max_ids")?).filter(|ids| ids.get() <= Horizon::MAX_IDS)?,
        },
        ids_within: match named.remove("ids_within") {
            None => IdScope::Partition,
            Some(scope) => scope.parse().ok()?,
        },
    };
    named.is_empty().then_some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_they_write() {
        let rules = Rules { max_future_s: 7, min_event_s: 946_684_800, ..Rules::default() };
        let text = "bucket_seconds=60 max_future_seconds=7 horizon_offsets=1000000 \
                    max_ids=1000000 ids_within=counter min_event_seconds=946684800";
        assert_eq!((rules.to_string().as_str(), text.parse()), (text, Ok(rules)));
        for bad in [
            "bucket_seconds=60",
            "bucket_seconds=7 max_future_seconds=7 horizon_offsets=1 max_ids=1",
            "bucket_seconds=60 max_future_seconds=7 horizon_offsets=1 max_ids=0",
            "bucket_seconds=60 max_future_seconds=7 horizon_offsets=1 max_ids=134217729",
            "bucket_seconds=60 max_future_seconds=7 horizon_offsets=1 max_ids=1 more=1",
            "bucket_seconds=60 max_future_seconds=7 horizon_offsets=1 max_ids=1 max_ids=1",
            "bucket_seconds=60 max_future_seconds=7 horizon_offsets=1 max_ids=1 ids_within=all",
            "bucket_seconds=60 max_future_seconds=7 horizon_offsets=1 max_ids=1 \
             min_event_seconds=-1",
        ] {
            assert_eq!(bad.parse::<Rules>(), Err(RulesParseError(bad.into())));
        }
    }

    #[test]
    fn rules_written_before_ids_were_of_counters_are_those_of_then() {
        let text = "bucket_seconds=60 max_future_seconds=86400 horizon_offsets=1000000 \
                    max_ids=1000000";
        let then = Rules { ids_within: IdScope::Partition, ..Rules::default() };
        assert_eq!(text.parse(), Ok(then));
    }

    #[test]
    fn rules_written_before_events_had_an_earliest_time_let_all_count() {
        let text = "bucket_seconds=60 max_future_seconds=86400 horizon_offsets=1000000 \
                    max_ids=1000000 ids_within=counter";
        assert_eq!(text.parse(), Ok(Rules { min_event_s: 0, ..Rules::default() }));
    }
}
