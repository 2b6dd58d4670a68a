//! What is asked: query strings and bodies, checked, every fault named by item and field.
//!
//! A counter of a query that no increment can have is an answer of its own: the others have theirs.

mod body;

use std::collections::BTreeMap;
use std::ops::Range;

use jiff::Timestamp;
use serde::Serialize;
use tally_counts::ledger::RESERVED_NAMESPACE;
use tally_counts::{Fold, NameError, Position, check_name, check_namespace};
use tally_platform::http::without_byte_order_mark;

use crate::counter::Counter;

/// Faults that an answer lists; it counts those beyond.
const MAX_FAULTS: usize = 100;

/// What an answer repeats of a name or a value that is wrong, in characters.
const MAX_REPEATED: usize = 500;

/// Past the last second that the store's times can hold: 2106-02-07T06:28:16Z.
const END_OF_TIME_S: u64 = 1 << 32;

/// Why a request cannot be answered as it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// The body cannot be read.
    Malformed(String),
    /// All that is wrong with it.
    Invalid(Faults),
}

impl Error {
    /// One thing is wrong.
    pub(crate) fn invalid(field: &str, reason: impl Into<String>) -> Error {
        Fault::new(field, reason).into()
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        let mut faults = Faults::default();
        faults.push(fault);
        Error::Invalid(faults)
    }
}

/// What is wrong with a request, as far as an answer lists it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) listed: Vec<Fault>,
    pub(crate) omitted: usize,
}

impl Faults {
    fn push(&mut self, fault: Fault) {
        if self.listed.len() < MAX_FAULTS {
            self.listed.push(fault);
        } else {
            self.omitted += 1;
        }
    }

    fn or<T>(self, value: T) -> Result<T, Error> {
        if self.listed.is_empty() { Ok(value) } else { Err(Error::Invalid(self)) }
    }
}

impl Extend<Fault> for Faults {
    fn extend<I: IntoIterator<Item = Fault>>(&mut self, faults: I) {
        faults.into_iter().for_each(|fault| self.push(fault));
    }
}

/// One thing that is wrong with a request, and where. Items count from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) item: Option<usize>,
    pub(crate) field: String,
    pub(crate) reason: String,
}

impl Fault {
    fn new(field: &str, reason: impl Into<String>) -> Fault {
        let mut reason = reason.into();
        clip(&mut reason);
        let mut field = field.to_owned();
        clip(&mut field);
        Fault { item: None, field, reason }
    }
}

fn clip(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_REPEATED) {
        text.truncate(end);
        text.push('…');
    }
}

/// How one counter is read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The buckets, in seconds since 1970, that the value is of; all when absent.
    pub(crate) buckets: Option<Range<u64>>,
    pub(crate) after: Position,
    pub(crate) numbers: Numbers,
}

/// How values are written in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// As numbers, exactly, whatever their size.
    #[default]
    Number,
    /// As strings, for clients whose numbers are doubles and so exact up to 2⁵³ only.
    String,
}

/// Several counters, read as of one position.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) counters: Vec<Counter>,
    /// By their places among all that were asked for.
    pub(crate) odd: BTreeMap<usize, OddCounter>,
    pub(crate) after: Position,
}

/// A counter that no increment can have, as it was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OddCounter {
    pub(crate) namespace: String,
    pub(crate) key: String,
    pub(crate) fault: Fault,
}

/// Checks a name that was asked for. A name that no increment can have is a mistake rather than a
/// counter at zero.
pub(crate) fn counter(namespace: &str, key: &str) -> Result<Counter, Fault> {
    let checks =
        [("namespace", namespace, check_namespace(namespace)), ("key", key, check_name(key))];
    for (field, name, checked) in checks {
        checked.map_err(|error| match error {
            NameError::Empty | NameError::TooLong { .. } => {
                let (bytes, max) = (name.len(), Fold::MAX_NAME_BYTES);
                Fault::new(field, format!("{bytes} bytes, but it has 1 to {max}"))
            }
            NameError::Reserved => Fault::new(field, format!("{RESERVED_NAMESPACE} is reserved")),
        })?;
    }
    Ok(Counter::new(namespace, key))
}

/// Reads the pairs of a query string.
pub(crate) fn options(pairs: &[(String, String)]) -> Result<Options, Error> {
    let mut faults = Faults::default();
    let (mut from, mut to, mut after, mut numbers) = (None, None, None, None);
    for (field, value) in pairs {
        let taken = match field.as_str() {
            "from" => time(value).and_then(|time| once(&mut from, time)),
            "to" => time(value).and_then(|time| once(&mut to, time)),
            "after" => position(value).and_then(|position| once(&mut after, position)),
            "numbers" => as_numbers(value).and_then(|given| once(&mut numbers, given)),
            _ => Err("unknown; there are `from`, `to`, `after` and `numbers`".to_owned()),
        };
        faults.extend(taken.err().map(|reason| Fault::new(field, reason)));
    }
    if let (Some(from), Some(to)) = (from, to)
        && from >= to
    {
        faults.push(Fault::new("to", format!("{to} is not after `from`, {from}")));
    }
    faults.or(())?;
    let buckets = (from.is_some() || to.is_some())
        .then(|| from.map_or(0, first_second)..to.map_or(END_OF_TIME_S, first_second));
    let (after, numbers) = (after.unwrap_or_else(Position::default), numbers.unwrap_or_default());
    Ok(Options { buckets, after, numbers })
}

fn as_numbers(text: &str) -> Result<Numbers, String> {
    match text {
        "number" => Ok(Numbers::Number),
        "string" => Ok(Numbers::String),
        _ => Err(format!("{text:?}, but it is `number` or `string`")),
    }
}

/// Reads the query string of a request whose body says the rest.
pub(crate) fn numbers(pairs: &[(String, String)]) -> Result<Numbers, Error> {
    let mut numbers = None;
    for (field, value) in pairs {
        let taken = match field.as_str() {
            "numbers" => as_numbers(value).and_then(|given| once(&mut numbers, given)),
            _ => Err("unknown; there is `numbers`".to_owned()),
        };
        taken.map_err(|reason| Error::invalid(field, reason))?;
    }
    Ok(numbers.unwrap_or_default())
}

/// Reads the body of a query.
pub(crate) fn query(body: &[u8]) -> Result<Query, Error> {
    body::read(without_byte_order_mark(body))
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("given more than once".to_owned()),
    }
}

fn position(text: &str) -> Result<Position, String> {
    text.parse().map_err(|error: tally_counts::PositionParseError| error.to_string())
}

/// RFC 3339, or milliseconds since 1970; as far as the store's times go.
fn time(text: &str) -> Result<Timestamp, String> {
    let is_number =
        text.strip_prefix('-').unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit());
    let time = match (is_number, text.parse::<i64>()) {
        (true, Ok(ms)) => Timestamp::from_millisecond(ms).map_err(|error| error.to_string())?,
        _ => text.parse::<Timestamp>().map_err(|error| {
            format!("{text:?} is neither a time by RFC 3339 nor milliseconds since 1970: {error}")
        })?,
    };
    match u64::try_from(time.as_second()) {
        Ok(_) if first_second(time) <= END_OF_TIME_S && time >= Timestamp::UNIX_EPOCH => Ok(time),
        _ => Err(format!("{text:?} is not between 1970 and 2106")),
    }
}

/// The first whole second at or after `time`: buckets start at whole seconds.
fn first_second(time: Timestamp) -> u64 {
    let seconds = time.as_second().unsigned_abs();
    if time.subsec_nanosecond() > 0 { seconds + 1 } else { seconds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Code, Problem};

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect()
    }

    fn faults(result: Result<impl std::fmt::Debug, Error>) -> Vec<(Option<usize>, String)> {
        let problem = Problem::from(result.unwrap_err());
        assert_eq!(problem.code, Code::InvalidRequest);
        assert_eq!(problem.errors_omitted, 0);
        problem.errors.into_iter().map(|fault| (fault.item, fault.field)).collect()
    }

    #[test]
    fn a_range_is_of_the_buckets_that_start_in_it() {
        let buckets = |given: &[(&str, &str)]| options(&pairs(given)).unwrap().buckets;
        assert_eq!(buckets(&[]), None);
        assert_eq!(buckets(&[("from", "60000"), ("to", "120000")]), Some(60..120));
        assert_eq!(buckets(&[("from", "60001"), ("to", "120001")]), Some(61..121));
        assert_eq!(buckets(&[("from", "1970-01-01T00:01:00Z")]), Some(60..END_OF_TIME_S));
        assert_eq!(buckets(&[("to", "1970-01-01T01:01:00.5+01:00")]), Some(0..61));
        assert_eq!(buckets(&[("to", "2106-02-07T06:28:16Z")]), Some(0..END_OF_TIME_S));
    }

    #[test]
    fn a_query_string_with_faults_names_each() {
        let named = |given: &[(&str, &str)]| faults(options(&pairs(given)));
        for (field, value) in [
            ("from", "yesterday"),
            ("from", "-1"),
            ("from", ""),
            ("to", "1969-12-31T23:59:59.9Z"),
            ("to", "2106-02-07T06:28:17Z"),
            ("to", "99999999999999999999"),
            ("after", "0:x"),
            ("step", "60"),
        ] {
            assert_eq!(named(&[(field, value)]), [(None, field.to_owned())], "{value}");
        }
        assert_eq!(named(&[("from", "5"), ("to", "5")]), [(None, "to".to_owned())]);
        let both = [(None, "after".to_owned()), (None, "limit".to_owned())];
        assert_eq!(named(&[("after", "0:1"), ("after", "0:2"), ("limit", "3")]), both);
    }

    #[test]
    fn a_body_is_read_in_order() {
        let body = br#"{"after": "0:5",
            "counters": [{"namespace": "n", "key": "b"}, {"key": "a", "namespace": "n"}]}"#;
        let counters = vec![Counter::new("n", "b"), Counter::new("n", "a")];
        let after = "0:5".parse().unwrap();
        assert_eq!(query(body).unwrap(), Query { counters, odd: BTreeMap::new(), after });
        let body = r#"{"after": null, "counters": [{"namespace": "n", "key": "a"}]}"#;
        let marked = format!("\u{feff}{body}");
        let counters = vec![Counter::new("n", "a")];
        let expected = Query { counters, odd: BTreeMap::new(), after: Position::default() };
        assert_eq!(query(marked.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn a_body_with_faults_names_the_item_and_the_field() {
        let at = |item: usize, field: &str| (Some(item), field.to_owned());
        let whole = |field: &str| (None, field.to_owned());
        let body = br#"{"counters": [
            {"namespace": "n"}, {"namespace": "n", "key": "a"}, 7, {"namespace": 1, "key": "a"},
            {"namespace": "n", "key": ["a", {"b": null}]}, {"namespace": "n", "key": null},
            {"namespace": "n", "key": "a", "at": 1}]}"#;
        assert_eq!(
            faults(query(body)),
            [
                at(0, "key"),
                at(2, "counters"),
                at(3, "namespace"),
                at(4, "key"),
                at(5, "key"),
                at(6, "at")
            ]
        );
        assert_eq!(faults(query(b"{}")), [whole("counters")]);
        assert_eq!(faults(query(br#"{"counters": null}"#)), [whole("counters")]);
        let missing = query(br#"{"counters": [{"namespace": null, "key": "a"}]}"#);
        let fault = Fault { item: Some(0), ..Fault::new("namespace", "missing") };
        assert_eq!(missing, Err(Error::from(fault)));
        assert_eq!(faults(query(br#"{"counters": []}"#)), [whole("counters")]);
        assert_eq!(
            faults(query(br#"{"counters": {}, "after": 5}"#)),
            [whole("after"), whole("counters")]
        );
        assert_eq!(faults(query(br#"{"counters": 1.5, "x": [], "y": true}"#)).len(), 3);
        let code = |body: &[u8]| Problem::from(query(body).unwrap_err()).code;
        assert_eq!(code(b"[]"), Code::MalformedBody);
        assert_eq!(code(b"{"), Code::MalformedBody);
    }

    #[test]
    fn a_counter_that_no_increment_can_have_fails_itself_alone() {
        let long = "k".repeat(Fold::MAX_NAME_BYTES + 1);
        let body = format!(
            r#"{{"counters": [{{"namespace": "n", "key": "a"}}, {{"namespace": "n", "key": ""}},
                {{"namespace": "__tally", "key": "deltas"}}, {{"namespace": "n", "key": "{long}"}},
                {{"namespace": "n", "key": "b"}}]}}"#
        );
        let Query { counters, odd, .. } = query(body.as_bytes()).unwrap();
        assert_eq!(counters, [Counter::new("n", "a"), Counter::new("n", "b")]);
        assert!(odd.keys().eq(&[1, 2, 3]));
        let odd = |item: usize| &odd[&item];
        assert_eq!((odd(1).key.as_str(), odd(1).fault.field.as_str()), ("", "key"));
        let reserved = (odd(2).namespace.as_str(), odd(2).fault.field.as_str());
        assert_eq!(reserved, ("__tally", "namespace"));
        assert_eq!((&odd(3).key, odd(3).fault.field.as_str()), (&long, "key"));
    }

    #[test]
    fn an_answer_lists_no_more_faults_and_repeats_no_more_of_them_than_it_may() {
        let problem = |error: Error| Problem::from(error);
        let items = ["7"; 1000].join(",");
        let many = problem(query(format!(r#"{{"counters": [{items}]}}"#).as_bytes()).unwrap_err());
        assert_eq!((many.errors.len(), many.errors_omitted), (MAX_FAULTS, 900));
        assert!(many.detail.contains("1000 errors"), "{}", many.detail);
        let items = ["7"; 1001].join(",");
        let most = problem(query(format!(r#"{{"counters": [{items}]}}"#).as_bytes()).unwrap_err());
        assert_eq!(most.errors.len(), 1, "items beyond the most are not looked at");
        assert!(most.errors[0].reason.contains("1001 items"), "{}", most.errors[0].reason);

        let long = "x".repeat(1 << 20);
        for body in [
            format!(r#"{{"counters": [{{"namespace": "n", "key": "a", "{long}": 1}}]}}"#),
            format!(r#"{{"counters": [{{"namespace": "n", "key": "a"}}], "{long}": 1}}"#),
            format!(r#"{{"counters": [{{"namespace": "n", "key": "a"}}], "after": "{long}"}}"#),
        ] {
            let problem = problem(query(body.as_bytes()).unwrap_err());
            let repeated = problem.errors[0].field.len() + problem.errors[0].reason.len();
            assert!(repeated < 2 * MAX_REPEATED, "{repeated}");
            assert!(problem.detail.len() < 3 * MAX_REPEATED);
        }
        let fields: Vec<_> = (0..500).map(|n| (format!("f{n}"), String::new())).collect();
        let many = problem(options(&fields).unwrap_err());
        assert_eq!((many.errors.len(), many.errors_omitted), (MAX_FAULTS, 400));
    }
}
