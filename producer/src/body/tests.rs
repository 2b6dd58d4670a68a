use proptest::prelude::*;
use serde_json::{Value, json};
use tally_counts::{BucketWidth, Envelope, Fold, Horizon};
use tally_platform::problem::Code as _;
use tally_schemas::BatchEncoder;

use super::*;
use crate::problem::{Code, Problem};

const NOW_MS: i64 = 1_700_000_000_123;
const COUNTING: tally_counts::Rules = tally_counts::Rules {
    ids_within: tally_counts::IdScope::Counter,
    width: BucketWidth::MINUTE,
    horizon: Horizon::MILLION,
    max_future_s: 3600,
    // The year 2000.
    min_event_s: 946_684_800,
};
const MIN_EVENT_MS: i64 = 1000 * COUNTING.min_event_s as i64;
const RULES: Rules = Rules { now_ms: NOW_MS, counting: COUNTING };

fn read(media_type: MediaType, body: &[u8]) -> Result<Parsed<'_>, Problem> {
    parse(media_type, &Avro::new(), body, RULES).map_err(Problem::from)
}

fn faults(media_type: MediaType, body: &str) -> Vec<Fault> {
    let problem = read(media_type, body.as_bytes()).unwrap_err();
    assert_eq!(problem.code.status(), 400);
    problem.errors
}

/// The only fault of a single JSON increment: its field and the reason.
fn fault(body: Value) -> (Option<String>, String) {
    match &faults(MediaType::Json, &body.to_string())[..] {
        [Fault { item: Some(0), line: None, column: None, field, reason }] => {
            (field.clone(), reason.clone())
        }
        other => panic!("{body}: {other:?}"),
    }
}

fn item<'a>(namespace: &'a str, key: &'a str) -> Item<'a> {
    Item { namespace: namespace.into(), key: key.into(), delta: 1, at_ms: NOW_MS, id: None }
}

#[test]
fn what_is_left_out_is_one_and_now() {
    let parsed = read(MediaType::Json, br#" {"namespace":"web","key":"hits"} "#).unwrap();
    assert_eq!(parsed, Parsed { shape: Shape::Single, id: None, items: vec![item("web", "hits")] });
    let parsed = read(MediaType::Json, br#"[{"namespace":"web","key":"hits","id":null}]"#).unwrap();
    assert_eq!(parsed, Parsed { shape: Shape::Batch, id: None, items: vec![item("web", "hits")] });
}

#[test]
fn strings_are_borrowed_unless_they_are_escaped() {
    let parsed = read(MediaType::Json, br#"{"namespace":"web","key":"h\u00fc\n"}"#).unwrap();
    assert!(matches!(parsed.items[0].namespace, Cow::Borrowed("web")));
    assert_eq!(parsed.items[0].key, "h\u{fc}\n");
}

#[test]
fn times_are_rfc_3339_or_milliseconds() {
    for (at, at_ms) in [
        (json!("2000-01-01T00:00:00Z"), MIN_EVENT_MS),
        (json!("2001-01-31T09:30:00Z"), 980_933_400_000),
        (json!("2001-01-31T10:30:00.0019+01:00"), 980_933_400_001),
        (json!(980_933_400_000i64), 980_933_400_000),
        // An hour, but for the minute that the broker's clock may be behind.
        (json!(NOW_MS + 3_540_000), NOW_MS + 3_540_000),
    ] {
        let body = json!({"namespace": "n", "key": "k", "at": at}).to_string();
        assert_eq!(read(MediaType::Json, body.as_bytes()).unwrap().items[0].at_ms, at_ms, "{at}");
    }
}

#[test]
fn an_integer_may_be_written_in_any_way() {
    for (delta, expected) in [
        ("-0", 0),
        ("1.0", 1),
        ("1e3", 1000),
        ("9007199254740993.0", 9_007_199_254_740_993),
        ("-9.223372036854775808e18", i64::MIN),
    ] {
        let body =
            format!(r#"{{"namespace":"n","key":"k","delta": {delta},"at":1.700000000123e12}}"#);
        let parsed = read(MediaType::Json, body.as_bytes()).unwrap();
        assert_eq!((parsed.items[0].delta, parsed.items[0].at_ms), (expected, NOW_MS), "{body}");
    }
    for (field, number, reason) in [
        ("delta", "1.5", "must be an integer, not a number with a fraction"),
        ("delta", "1e-1", "must be an integer, not a number with a fraction"),
        ("delta", "1e30", "does not fit 64 bits"),
        ("delta", "9223372036854775808.0", "does not fit 64 bits"),
        ("at", "1e400", "must not be before 1970 or after 2106"),
        (
            "at",
            "0.5",
            "must be RFC 3339 text or an integer of milliseconds since 1970, \
             not a number with a fraction",
        ),
    ] {
        let body = format!(r#"{{"namespace":"n","key":"k","{field}":{number}}}"#);
        let [fault] = &faults(MediaType::Json, &body)[..] else { panic!("{body}") };
        assert_eq!((fault.field.as_deref(), &*fault.reason), (Some(field), reason));
    }
}

#[test]
fn null_is_the_same_as_absent() {
    let body = br#"{"namespace":"n","key":"k","delta":null,"at":null,"id":null}"#;
    assert_eq!(read(MediaType::Json, body).unwrap().items, [item("n", "k")]);
    for field in ["namespace", "key"] {
        let mut body = json!({"namespace": "n", "key": "k"});
        body[field] = Value::Null;
        assert_eq!(fault(body), (Some(field.to_owned()), "is missing".to_owned()));
    }
}

#[test]
fn a_time_in_another_unit_is_refused_and_the_unit_is_guessed() {
    let before = "must not be before 2000-01-01T00:00:00Z (counts.min_event_time)";
    let outside = "must not be before 1970 or after 2106";
    let at = NOW_MS / 1000;
    for (at, bound, unit) in [
        (at, before, Some("seconds")),
        (at * 1_000_000, outside, Some("microseconds")),
        (at * 1_000_000_000, outside, Some("nanoseconds")),
        // In seconds, before 2000 and after now.
        (MIN_EVENT_MS / 1000 - 1, before, None),
        (at * 2, before, None),
        (0, before, None),
    ] {
        let reason = match unit {
            Some(unit) => format!("{bound}; {at} is in {unit}? it must be in milliseconds"),
            None => bound.to_owned(),
        };
        let named = (Some("at".to_owned()), reason);
        assert_eq!(fault(json!({"namespace": "n", "key": "k", "at": at})), named);
        let avro = batch(&[&item("n", "k"), &Item { at_ms: at, ..item("n", "k") }], None);
        let problem = read(MediaType::Avro, &avro).unwrap_err();
        let [fault] = &problem.errors[..] else { panic!("{:?}", problem.errors) };
        assert_eq!((fault.item, (fault.field.clone(), fault.reason.clone())), (Some(1), named));
    }
}

#[test]
fn a_bad_field_is_named_with_its_reason() {
    let long = "x".repeat(Fold::MAX_NAME_BYTES + 1);
    for (field, value, reason) in [
        ("namespace", json!(""), "must not be empty"),
        ("namespace", json!(7), "must be a string, not a number"),
        ("namespace", json!("__tally"), "\"__tally\" is reserved"),
        ("namespace", json!(null), "is missing"),
        ("key", json!(long), "must not be longer than 4096 bytes of UTF-8; it has 4097"),
        ("key", json!(["a", {"b": 1}]), "must be a string, not an array"),
        ("delta", json!("1"), "must be an integer, not a string"),
        ("delta", json!(1.5), "must be an integer, not a number with a fraction"),
        ("delta", json!(u64::MAX), "does not fit 64 bits"),
        ("at", json!(-1), "must not be before 2000-01-01T00:00:00Z (counts.min_event_time)"),
        (
            "at",
            json!("1999-12-31T23:59:59.9999Z"),
            "must not be before 2000-01-01T00:00:00Z (counts.min_event_time)",
        ),
        ("at", json!("2106-02-07T06:28:16Z"), "must not be before 1970 or after 2106"),
        ("at", json!(u64::MAX), "must not be before 1970 or after 2106"),
        ("at", json!(NOW_MS + 3_540_001), "must not be later than now by more than 3540 s"),
        (
            "at",
            json!(true),
            "must be RFC 3339 text or an integer of milliseconds since 1970, not a boolean",
        ),
        (
            "at",
            json!("2001-01-31T09:30:00"),
            "\"2001-01-31T09:30:00\" is not an RFC 3339 time with its offset, \
             such as 2001-01-31T09:30:00Z",
        ),
        ("id", json!(""), "must not be empty"),
        ("id", json!({}), "must be a string or null, not an object"),
        ("detla", json!([1, [2]]), "is unknown: an increment has namespace, key, delta, at and id"),
    ] {
        let mut body = json!({"namespace": "n", "key": "k"});
        body[field] = value;
        assert_eq!(fault(body), (Some(field.to_owned()), reason.to_owned()));
    }
    assert_eq!(fault(json!({"namespace": "n"})), (Some("key".into()), "is missing".into()));
    assert_eq!(fault(json!("n")), (None, "must be an object, not a string".into()));
    let twice = faults(MediaType::Json, r#"{"namespace":"n","key":"a","key":"b"}"#);
    assert_eq!(
        (twice[0].field.as_deref(), &*twice[0].reason),
        (Some("key"), "is given more than once")
    );
}

#[test]
fn every_bad_item_is_named() {
    let body = r#"[{"namespace":"n","key":"k"}, 7, {"namespace":"","key":1},
        {"namespace":"n","key":"k"}, null]"#;
    let found: Vec<_> =
        faults(MediaType::Json, body).into_iter().map(|f| (f.item.unwrap(), f.field)).collect();
    let (namespace, key) = (Some("namespace".to_owned()), Some("key".to_owned()));
    assert_eq!(found, [(1, None), (2, namespace), (2, key), (4, None)]);
}

#[test]
fn an_empty_id_is_refused_in_every_format() {
    let (sound, empty) = (item("n", "k"), Item { id: Some("".into()), ..item("n", "k") });
    let objects = [object(&sound, false), object(&empty, false)];
    let lines: String = objects.iter().map(|object| format!("{object}\n")).collect();
    let bodies = [
        (MediaType::Json, Value::from(objects.to_vec()).to_string().into_bytes(), 1),
        (MediaType::Json, objects[1].to_string().into_bytes(), 0),
        (MediaType::NdJson, lines.into_bytes(), 1),
        (MediaType::Avro, batch(&[&sound, &empty], None), 1),
    ];
    for (media_type, body, bad) in bodies {
        let problem = read(media_type, &body).unwrap_err();
        assert_eq!(problem.code, Code::InvalidIncrements);
        let [fault] = &problem.errors[..] else { panic!("{:?}", problem.errors) };
        assert_eq!((fault.item, fault.field.as_deref()), (Some(bad), Some("id")));
        assert_eq!(fault.reason, "must not be empty");
    }
}

#[test]
fn a_hundred_faults_are_listed_and_the_others_counted() {
    let body = format!("[{}0]", "0,".repeat(249));
    let problem = read(MediaType::Json, body.as_bytes()).unwrap_err();
    assert_eq!((problem.errors.len(), problem.errors_omitted), (100, 150));
    assert_eq!(problem.detail, "250 errors; nothing of the request is counted");
}

#[test]
fn broken_json_is_told_with_its_place() {
    let problem = read(MediaType::Json, b"[{\"namespace\": \"n\",\n  \"key\" 7}]").unwrap_err();
    assert_eq!(problem.code, Code::MalformedBody);
    assert_eq!(problem.detail, "malformed JSON at line 2, column 9: expected `:`");
    assert_eq!((problem.errors[0].line, problem.errors[0].column), (Some(2), Some(9)));
    for body in
        ["{", "[{}", "[{}]x", "{\"namespace\":\"n\",\"key\":\"k\"}{}", " \u{feff}{}", "nul", "[1,]"]
    {
        assert_eq!(
            read(MediaType::Json, body.as_bytes()).unwrap_err().code,
            Code::MalformedBody,
            "{body}"
        );
    }
    assert_eq!(
        read(MediaType::Json, b"{\"namespace\":\"\xff\"}").unwrap_err().code,
        Code::MalformedBody
    );
    // Half a surrogate pair, in a field that is text and in one that may be.
    for field in ["key", "at"] {
        let body = format!("{{\"namespace\":\"n\",\"{field}\":\"\\ud800\"}}");
        let code = read(MediaType::Json, body.as_bytes()).unwrap_err().code;
        assert_eq!(code, Code::MalformedBody, "{body}");
    }
    let deep = format!("{{\"at\":{}", "[".repeat(1_000_000));
    assert_eq!(read(MediaType::Json, deep.as_bytes()).unwrap_err().code, Code::MalformedBody);
}

#[test]
fn lines_of_json_sent_as_json_are_told_apart() {
    let line = r#"{"namespace":"n","key":"k"}"#;
    for body in [format!("{line}\n{line}\n"), format!("{line}{line}"), format!("{line}\r\n[]")] {
        let problem = read(MediaType::Json, body.as_bytes()).unwrap_err();
        assert_eq!(problem.code, Code::MalformedBody);
        assert!(problem.detail.starts_with("malformed JSON at line "), "{}", problem.detail);
        let advice = "if it is NDJSON, send it as application/x-ndjson";
        assert!(problem.detail.ends_with(advice), "{}", problem.detail);
    }
    let noise = read(MediaType::Json, format!("{line}x").as_bytes()).unwrap_err();
    assert!(noise.detail.ends_with("trailing characters"), "{}", noise.detail);
}

#[test]
fn a_byte_order_mark_at_the_start_is_passed_over() {
    let line = "\u{feff}{\"namespace\":\"n\",\"key\":\"k\"}";
    for (media_type, body) in [
        (MediaType::Json, line.to_owned()),
        (MediaType::Json, format!("\u{feff}[{}]", &line[3..])),
        (MediaType::NdJson, format!("{line}\n")),
    ] {
        assert_eq!(read(media_type, body.as_bytes()).unwrap().items, [item("n", "k")], "{body}");
    }
    let twice = format!("\u{feff}{line}");
    assert_eq!(read(MediaType::Json, twice.as_bytes()).unwrap_err().code, Code::MalformedBody);
}

#[test]
fn nothing_at_all_is_refused() {
    let empty = batch(&[], None);
    for (media_type, body) in [
        (MediaType::Json, &b""[..]),
        (MediaType::Json, b" \n"),
        (MediaType::Json, b"\xef\xbb\xbf"),
        (MediaType::Json, b"[]"),
        (MediaType::NdJson, b"\n\r\n"),
        (MediaType::Avro, b""),
        (MediaType::Avro, &empty),
    ] {
        let problem = read(media_type, body).unwrap_err();
        assert_eq!(
            (problem.code, &*problem.detail),
            (Code::MalformedBody, "there are no increments in it")
        );
    }
}

#[test]
fn each_line_of_ndjson_stands_for_itself() {
    let good = "{\"namespace\":\"n\",\"key\":\"a\"}\r\n\n  {\"namespace\":\"n\",\"key\":\"b\"}";
    let parsed = read(MediaType::NdJson, good.as_bytes()).unwrap();
    assert_eq!(
        parsed,
        Parsed { shape: Shape::Batch, id: None, items: vec![item("n", "a"), item("n", "b")] }
    );

    let bad =
        "{\"namespace\":\"n\",\"key\":\"a\"}\n\n{\"namespace\":\"n\"}\n{\"namespace\":\nx\n[{}]\n";
    let found: Vec<_> = faults(MediaType::NdJson, bad)
        .into_iter()
        .map(|fault| (fault.item.unwrap(), fault.line.unwrap(), fault.column, fault.reason))
        .collect();
    assert_eq!(
        found,
        [
            (1, 3, None, "is missing".to_owned()),
            (2, 4, Some(13), "malformed JSON: EOF while parsing a value".to_owned()),
            (3, 5, Some(1), "malformed JSON: expected value".to_owned()),
            (4, 6, None, "must be an object, not an array".to_owned()),
        ]
    );
}

#[test]
fn an_avro_batch_is_held_against_the_same_rules() {
    let sound = Item { id: Some("once".into()), delta: -4, ..item("n", "k") };
    let reserved = Item { at_ms: -1, ..item("__tally", "") };
    let body = batch(&[&sound], Some("batch"));
    let parsed = read(MediaType::Avro, &body).unwrap();
    assert_eq!(parsed, Parsed { shape: Shape::Batch, id: Some("batch"), items: vec![sound] });

    let problem =
        read(MediaType::Avro, &batch(&[&item("n", "k"), &reserved], Some(""))).unwrap_err();
    assert_eq!(problem.code, Code::InvalidIncrements);
    let found: Vec<_> =
        problem.errors.iter().map(|fault| (fault.item, fault.field.as_deref().unwrap())).collect();
    assert_eq!(found, [(Some(1), "namespace"), (Some(1), "key"), (Some(1), "at"), (None, "id")]);
}

#[test]
fn broken_avro_is_told_with_its_place() {
    let body = batch(&[&item("n", "k")], None);
    let problem = read(MediaType::Avro, &body[..body.len() - 4]).unwrap_err();
    assert_eq!(problem.code, Code::MalformedBody);
    assert!(
        problem.detail.starts_with("not a binary tally.IncrementBatch: `increments[0]."),
        "{}",
        problem.detail
    );
    assert!(read(MediaType::Avro, &[&body[..], b"x"].concat()).is_err());
    assert!(read(MediaType::Avro, b"{\"namespace\":\"n\",\"key\":\"k\"}").is_err());
}

fn batch(items: &[&Item<'_>], id: Option<&str>) -> Vec<u8> {
    let mut encoder = BatchEncoder::new();
    items.iter().for_each(|item| encoder.push(&item.increment()));
    let mut body = Vec::new();
    encoder.finish(&mut body, id);
    body
}

fn any_item() -> impl Strategy<Value = Item<'static>> {
    let name = "\\PC{1,12}|[\\x00-\\x1f\"\\\\]{1,4}";
    let at_ms = MIN_EVENT_MS..=NOW_MS + 3_540_000;
    (name, name, any::<i64>(), at_ms, proptest::option::of(name)).prop_map(
        |(namespace, key, delta, at_ms, id)| Item {
            namespace: namespace.into(),
            key: key.into(),
            delta,
            at_ms,
            id: id.map(Into::into),
        },
    )
}

fn object(item: &Item<'_>, as_text: bool) -> Value {
    let Item { namespace, key, delta, at_ms, id, .. } = item;
    let at = if as_text {
        json!(jiff::Timestamp::from_millisecond(*at_ms).unwrap().to_string())
    } else {
        json!(at_ms)
    };
    json!({"namespace": namespace, "key": key, "delta": delta, "at": at, "id": id})
}

proptest! {
    #[test]
    fn whatever_is_written_is_read(
        items in prop::collection::vec(any_item(), 1..6),
        as_text: bool,
    ) {
        let objects: Vec<Value> = items.iter().map(|item| object(item, as_text)).collect();
        let array = Value::from(objects.clone()).to_string();
        prop_assert_eq!(&read(MediaType::Json, array.as_bytes()).unwrap().items, &items);
        let pretty = serde_json::to_string_pretty(&objects[0]).unwrap();
        prop_assert_eq!(&read(MediaType::Json, pretty.as_bytes()).unwrap().items[..], &items[..1]);
        let lines: String = objects.iter().map(|object| format!("{object}\n")).collect();
        prop_assert_eq!(&read(MediaType::NdJson, lines.as_bytes()).unwrap().items, &items);
        let avro = batch(&items.iter().collect::<Vec<_>>(), None);
        prop_assert_eq!(&read(MediaType::Avro, &avro).unwrap().items, &items);
    }

    /// Bytes of any kind are read or refused, and what is read could be counted.
    #[test]
    fn no_body_breaks_the_reader(
        items in prop::collection::vec(any_item(), 1..3),
        cut: prop::sample::Index,
        noise: u8,
        keep: bool,
    ) {
        for media_type in [MediaType::Json, MediaType::NdJson, MediaType::Avro] {
            let mut body = match media_type {
                MediaType::Avro => batch(&items.iter().collect::<Vec<_>>(), None),
                _ => {
                    let objects: Vec<_> = items.iter().map(|item| object(item, false)).collect();
                    Value::from(objects).to_string().into()
                }
            };
            let at = cut.index(body.len());
            body[at] = noise;
            if !keep {
                body.truncate(at + 1);
            }
            if let Ok(parsed) = read(media_type, &body) {
                let timestamp_ms = Some(NOW_MS);
                let envelope = Envelope { offset: 0, timestamp_ms, schema: 0, batch_id: None };
                let is_countable = |item: &Item<'_>| {
                    Fold::new(COUNTING, 0).count(&envelope, &[item.increment()]).is_ok()
                };
                prop_assert!(parsed.items.iter().all(is_countable));
            }
        }
    }
}
