//! What each field of an increment must be.

use std::borrow::Cow;

use jiff::Timestamp;
use tally_counts::Reject;

use super::Rules;
use super::number::Number;
use super::value::Value;

const AT_RANGE: &str = "must not be before 1970 or after 2106";

/// How far the broker's clock, which gives the message its time, may be behind this one's, in
/// milliseconds: what is answered 200 must not be too late then. Half of what events may be later
/// than messages, where that is less.
const CLOCKS_APART_MS: i64 = 60_000;

pub(super) fn at(at_ms: i64, rules: Rules) -> Result<(), String> {
    let allowed_ms = i64::from(rules.counting.max_future_s) * 1000;
    let broker_ms = rules.now_ms - CLOCKS_APART_MS.min(allowed_ms / 2);
    let latest_ms = rules.counting.latest_event_ms(Some(broker_ms));
    let with_unit = |bound: String| match rules.counting.seeming_unit(at_ms, Some(broker_ms)) {
        Some(unit) => format!("{bound}; {at_ms} is in {unit}? it must be in milliseconds"),
        None => bound,
    };
    let earliest_ms = rules.counting.earliest_event_ms();
    if at_ms < earliest_ms {
        let earliest = Timestamp::from_millisecond(earliest_ms).expect("it is configured");
        let bound = format!("must not be before {earliest} (counts.min_event_time)");
        return Err(with_unit(bound));
    }
    match rules.counting.bucket(at_ms, latest_ms) {
        Ok(_) => Ok(()),
        Err(Reject::FutureEventTime) => {
            let seconds = (latest_ms - rules.now_ms) / 1000;
            Err(format!("must not be later than now by more than {seconds} s"))
        }
        Err(_) => Err(with_unit(AT_RANGE.into())),
    }
}

/// Absent and null are the same.
pub(super) fn required_text(value: Option<Value<'_>>) -> Result<Cow<'_, str>, String> {
    match value {
        None | Some(Value::Null) => Err("is missing".into()),
        Some(Value::Text(text)) => Ok(text),
        Some(other) => Err(format!("must be a string, not {}", other.kind())),
    }
}

/// Absent and null are the same.
pub(super) fn optional_text(value: Option<Value<'_>>) -> Result<Option<Cow<'_, str>>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(other) => Err(format!("must be a string or null, not {}", other.kind())),
    }
}

/// Milliseconds since 1970 from a number, or from RFC 3339 text; a part of a millisecond is
/// dropped.
pub(super) fn at_ms(value: &Value<'_>) -> Result<i64, String> {
    match value {
        Value::Number(Number::Integer(at_ms)) => Ok(*at_ms),
        Value::Number(Number::Huge) => Err(AT_RANGE.into()),
        Value::Text(text) => {
            let at: Timestamp = text.parse().map_err(|_| {
                let shown: String = text.chars().take(64).collect();
                format!(
                    "{shown:?} is not an RFC 3339 time with its offset, \
                     such as 2001-01-31T09:30:00Z"
                )
            })?;
            // Below 1970 this rounds down, so that the moment before is not taken for 1970.
            i64::try_from(at.as_nanosecond().div_euclid(1_000_000)).map_err(|_| AT_RANGE.into())
        }
        other => Err(format!(
            "must be RFC 3339 text or an integer of milliseconds since 1970, not {}",
            other.kind()
        )),
    }
}

pub(super) fn delta(value: &Value<'_>) -> Result<i64, String> {
    match value {
        Value::Number(Number::Integer(delta)) => Ok(*delta),
        Value::Number(Number::Huge) => Err("does not fit 64 bits".into()),
        other => Err(format!("must be an integer, not {}", other.kind())),
    }
}
