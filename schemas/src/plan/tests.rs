use std::fmt::Write as _;

use super::*;
use crate::{BatchEncoder, Reason, avsc, encode, varint};

const HIT: Increment<'static> =
    Increment { namespace: "web", key: "hits", delta: 2, at_ms: 1_000, id: None };

/// The schema of a writer with our fields and these before them.
fn with_extra_fields(extra: &str) -> String {
    avsc::INCREMENT.replacen("\"fields\": [", &format!("\"fields\": [{extra},"), 1)
}

/// A body of that writer: the extra fields' bytes before ours.
fn with_extra_bytes(extra: &[u8]) -> Vec<u8> {
    let mut body = extra.to_vec();
    encode::increment(&mut body, &HIT);
    body
}

fn increment_schema(namespace: &str, key: &str, delta: &str, at: &str, id: &str) -> String {
    format!(
        r#"{{"type":"record","name":"Increment","fields":[{{"name":"namespace","type":{namespace}}},
           {{"name":"key","type":{key}}},{{"name":"delta","type":{delta}}},
           {{"name":"at","type":{at}}},{{"name":"id","type":{id}}}]}}"#
    )
}

fn plan_error(schema: &str) -> String {
    Plan::new(schema).err().expect("no plan").to_string()
}

fn longs(values: &[i64]) -> Vec<u8> {
    let mut out = Vec::new();
    for &value in values {
        varint::write(&mut out, value);
    }
    out
}

fn decode<'a>(plan: &Plan, body: &'a [u8]) -> Result<Vec<Increment<'a>>, DecodeError> {
    let mut increments = Vec::new();
    plan.decode_into(body, &mut increments)?;
    Ok(increments)
}

#[test]
fn our_own_schemas_take_the_short_way() {
    let canonical = |text: &str| match Plan::new(text).unwrap().record {
        RecordSteps::Increment(steps) => steps.is_canonical,
        RecordSteps::Batch(batch) => batch.steps.iter().any(|step| match &step.read {
            resolve::ReadBatch::Increments(resolve::Source::Plain(resolve::Source::Plain(
                steps,
            ))) => steps.is_canonical,
            _ => false,
        }),
    };
    assert!(canonical(avsc::INCREMENT));
    assert!(canonical(avsc::INCREMENT_BATCH));

    // Ours, or encoded alike; then, a field at a time, what is not.
    let ours = [r#""string""#, r#""bytes""#, r#""long""#, r#""long""#, r#"["null","bytes"]"#];
    let schema = |[namespace, key, delta, at, id]: [&str; 5]| {
        increment_schema(namespace, key, delta, at, id)
    };
    assert!(canonical(&schema(ours)));
    let micros = r#"{"type":"long","logicalType":"timestamp-micros"}"#;
    let others: [&[&str]; 5] = [
        &[r#"["string"]"#, r#"["null","string"]"#],
        &[r#"["string"]"#, r#"["null","string"]"#],
        &[r#""int""#, r#"["long"]"#],
        &[r#""int""#, r#"["long"]"#, micros],
        &[
            r#""null""#,
            r#""string""#,
            r#"["string","null"]"#,
            r#"["null","string","int"]"#,
            r#"["null"]"#,
        ],
    ];
    for (field, others) in others.into_iter().enumerate() {
        for other in others {
            let mut types = ours;
            types[field] = other;
            assert!(!canonical(&schema(types)), "field {field}: {other}");
        }
    }
    let swapped = avsc::INCREMENT
        .replace(r#""namespace","#, r#""swapped","#)
        .replace(r#""key","#, r#""namespace","#);
    assert!(!canonical(&swapped.replace(r#""swapped","#, r#""key","#)));
    assert!(!canonical(&with_extra_fields(r#"{"name":"x","type":"int"}"#)));
}

#[test]
fn a_schema_that_is_not_ours_is_refused_with_what_it_is() {
    for (schema, writer) in [
        (r#""long""#, "long"),
        (r#"{"type":"record","name":"tally.Decrement","fields":[]}"#, "record Decrement"),
        (r#"{"type":"array","items":"int"}"#, "array of int"),
        (r#"["null","int"]"#, "union of null, int"),
    ] {
        let error = plan_error(schema);
        assert_eq!(
            error,
            format!(
                "the schema is {writer}; only the records Increment and IncrementBatch are counted"
            )
        );
    }
}

#[test]
fn a_field_that_a_writer_lacks_is_named() {
    for field in ["namespace", "key", "delta", "at"] {
        for (schema, times) in [(avsc::INCREMENT, 1), (avsc::INCREMENT_BATCH, 1)] {
            let renamed = schema.replacen(
                &format!(r#""name": "{field}""#),
                r#""name": "other", "aliases": []"#,
                times,
            );
            assert_eq!(
                plan_error(&renamed),
                format!("Increment needs the field `{field}`, which the writer's record lacks")
            );
        }
    }
    assert_eq!(
        plan_error(&avsc::INCREMENT_BATCH.replace(r#""increments""#, r#""items""#)),
        "IncrementBatch needs the field `increments`, which the writer's record lacks"
    );
}

#[test]
fn a_type_that_cannot_be_promoted_is_named() {
    let (text, long) = (r#""string""#, r#""long""#);
    for (schema, error) in [
        (
            increment_schema(r#""int""#, text, long, long, text),
            "`namespace` of Increment cannot be read as a string from the writer's int",
        ),
        (
            increment_schema(text, r#"{"type":"fixed","name":"F","size":4}"#, long, long, text),
            "`key` of Increment cannot be read as a string from the writer's fixed",
        ),
        (
            increment_schema(text, text, r#""double""#, long, text),
            "`delta` of Increment cannot be read as a long from the writer's double",
        ),
        (
            increment_schema(text, text, long, r#"["null","string"]"#, text),
            "`at` of Increment cannot be read as a timestamp in milliseconds from the writer's \
             union of null, string",
        ),
        (
            increment_schema(text, text, long, long, r#"["int","boolean"]"#),
            "`id` of Increment cannot be read as null or a string from the writer's union of int, \
             boolean",
        ),
        (
            increment_schema(text, text, long, r#"{"type":"int","logicalType":"date"}"#, text),
            "`at` of Increment cannot be read from a date: it names no moment",
        ),
        (
            avsc::INCREMENT_BATCH.replace(r#""Increment""#, r#""Item""#),
            "`increments` of IncrementBatch cannot be read as an array of Increment from the \
             writer's record Item",
        ),
    ] {
        assert_eq!(plan_error(&schema), error);
    }
}

#[test]
fn a_malformed_schema_is_refused_with_the_reason() {
    for (extra, error) in [
        (r#"{"name":"x","type":"tally.Absent"}"#, "`tally.Absent` is used but not defined before"),
        (r#"{"name":"key","type":"int"}"#, "`tally.Increment.key` is defined twice"),
        (
            r#"{"name":"x","type":{"type":"enum","name":"Increment","symbols":[]}}"#,
            "`tally.Increment` is defined twice",
        ),
        (r#"{"name":"x","type":[]}"#, "a union: it has no branches"),
        (r#"{"name":"x","type":["null",["int"]]}"#, "a union: it holds another union"),
        (
            r#"{"name":"x","type":{"type":"fixed","name":"F","size":-1}}"#,
            "tally.F: a fixed without a size",
        ),
        (r#"{"name":"x"}"#, "tally.Increment.x: a field without a type"),
        (r#"{"name":"x","type":{"type":"array"}}"#, "an array: it has no items"),
    ] {
        assert_eq!(plan_error(&with_extra_fields(extra)), error);
    }
    assert!(matches!(Plan::new("{"), Err(PlanError::Json(_))));
}

#[test]
fn the_namespace_of_a_record_does_not_matter() {
    for name in [
        r#""name":"Increment""#,
        r#""name":"acme.Increment""#,
        r#""name":"Increment","namespace":"x""#,
    ] {
        let text =
            increment_schema(r#""string""#, r#""string""#, r#""long""#, r#""long""#, r#""string""#);
        assert_eq!(
            Plan::new(&text.replacen(r#""name":"Increment""#, name, 1)).unwrap().message_type(),
            MessageType::Increment
        );
    }
}

#[test]
fn a_branch_that_cannot_stand_there_fails_the_message_that_uses_it() {
    let nullable = r#"["null","string"]"#;
    let plan = Plan::new(&increment_schema(
        r#""string""#,
        nullable,
        r#""long""#,
        r#""long""#,
        r#""null""#,
    ))
    .unwrap();
    let good = [&longs(&[0, 1, 1])[..], b"k", &longs(&[5, 6])].concat();
    let read = Increment { namespace: "", key: "k", delta: 5, at_ms: 6, id: None };
    assert_eq!(decode(&plan, &good), Ok(vec![read]));

    for (branch, reason) in
        [(0, Reason::Branch(0)), (2, Reason::NoBranch(2)), (-1, Reason::NoBranch(-1))]
    {
        let error = decode(&plan, &longs(&[0, branch, 5, 6])).unwrap_err();
        assert_eq!(error, DecodeError { field: "key".to_owned(), position: 1, reason });
    }
}

#[test]
fn a_number_out_of_an_ints_range_is_refused() {
    let text = r#""string""#;
    let plan =
        Plan::new(&increment_schema(text, text, r#""int""#, r#""long""#, r#""null""#)).unwrap();
    for delta in [i64::from(i32::MIN), i64::from(i32::MAX)] {
        assert_eq!(decode(&plan, &longs(&[0, 0, delta, 6])).unwrap()[0].delta, delta);
    }
    let delta = i64::from(i32::MAX) + 1;
    let error = decode(&plan, &longs(&[0, 0, delta, 6])).unwrap_err();
    let reason = Reason::Range(delta);
    assert_eq!(error, DecodeError { field: "delta".to_owned(), position: 2, reason });
}

#[test]
fn times_are_read_by_their_unit() {
    let text = r#""string""#;
    for (logical_type, value, at_ms) in [
        ("timestamp-millis", 1_234, 1_234),
        ("timestamp-micros", 1_999, 1),
        ("timestamp-micros", -1, -1),
        ("timestamp-nanos", 5_999_999, 5),
        ("local-timestamp-millis", 7, 7),
        ("local-timestamp-micros", 7_000, 7),
        ("local-timestamp-nanos", i64::MIN, i64::MIN / 1_000_000 - 1),
        ("ours-alone", 9, 9),
    ] {
        let at = format!(r#"{{"type":"long","logicalType":"{logical_type}"}}"#);
        let plan = Plan::new(&increment_schema(text, text, r#""long""#, &at, r#""null""#)).unwrap();
        assert_eq!(
            decode(&plan, &longs(&[0, 0, 1, value])).unwrap()[0].at_ms,
            at_ms,
            "{logical_type}"
        );
    }
}

#[test]
fn an_error_names_the_item_the_field_and_the_byte() {
    let plan = Plan::new(avsc::INCREMENT_BATCH).unwrap();
    let mut encoder = BatchEncoder::new();
    for _ in 0..3 {
        encoder.push(&HIT);
    }
    let mut body = Vec::new();
    encoder.finish(&mut body, None);
    // No id, the count, then 13 bytes an increment, `key` four bytes into each.
    let key = 2 + 2 * 13 + 4;
    assert_eq!(body[key..key + 5], *b"\x08hits");

    body[key + 1] = 0xff;
    let error = decode(&plan, &body).unwrap_err();
    assert_eq!(error.to_string(), format!("`increments[2].key` at byte {key}: not UTF-8"));

    body[key] = 0x7f;
    let error = decode(&plan, &body).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`increments[2].key` at byte {key}: -64 is not a length")
    );

    body.truncate(key);
    let error = decode(&plan, &body).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`increments[2].key` at byte {key}: the body ends too early")
    );
}

#[test]
fn what_follows_a_message_fails_it() {
    let plan = Plan::new(avsc::INCREMENT).unwrap();
    let mut body = with_extra_bytes(&[]);
    assert_eq!(decode(&plan, &body), Ok(vec![HIT]));
    body.extend_from_slice(b"xy");
    assert_eq!(
        decode(&plan, &body).unwrap_err().to_string(),
        format!("`Increment` at byte {}: 2 bytes follow its end", body.len() - 2)
    );
}

#[test]
fn a_count_that_the_body_cannot_hold_is_refused_before_anything_is_read() {
    let plan = Plan::new(avsc::INCREMENT_BATCH).unwrap();
    for (block, items) in [
        (longs(&[0, 3]), 3),
        (longs(&[0, i64::MAX]), i64::MAX.unsigned_abs()),
        (longs(&[0, i64::MIN, 11]), i64::MIN.unsigned_abs()),
        (longs(&[0, -3, 11]), 3),
    ] {
        // An increment takes five bytes or more, so eleven hold two.
        let body = [block, vec![0; 11]].concat();
        let error = plan.decode(&body, |_| panic!("nothing was to be read")).unwrap_err();
        let reason = Reason::Items { items, bytes: 11 };
        assert_eq!(error, DecodeError { field: "increments".to_owned(), position: 1, reason });
    }
}

#[test]
fn a_block_has_to_end_where_its_size_says() {
    let plan = Plan::new(avsc::INCREMENT_BATCH).unwrap();
    let mut item = Vec::new();
    encode::increment(&mut item, &HIT);
    let body = |size: i64| [&longs(&[0, -1, size])[..], &item, &[0, 0, 0]].concat();
    assert_eq!(decode(&plan, &body(13)[..17]), Ok(vec![HIT]));
    for (size, away) in [(12, 1), (15, 2)] {
        assert_eq!(decode(&plan, &body(size)).unwrap_err().reason, Reason::BlockSize(away));
    }
    assert_eq!(decode(&plan, &body(-1)).unwrap_err().reason, Reason::Length(-1));
    assert_eq!(decode(&plan, &body(17)).unwrap_err().reason, Reason::End);
}

#[test]
fn blocks_that_state_their_size_are_passed_over_whole() {
    let array = r#"{"name":"x","type":{"type":"array","items":"string"}}"#;
    let map = r#"{"name":"y","type":{"type":"map","values":"double"}}"#;
    let plan = Plan::new(&with_extra_fields(&format!("{array},{map}"))).unwrap();
    let block = |count: i64| [&longs(&[count, 20])[..], &[0xff; 20], &[0]].concat();
    // What is within need not make sense: only its size counts.
    let body = with_extra_bytes(&[block(-3), block(-2)].concat());
    assert_eq!(decode(&plan, &body), Ok(vec![HIT]));

    let body = with_extra_bytes(&block(-21));
    let error = decode(&plan, &body).unwrap_err();
    let reason = Reason::Items { items: 21, bytes: 20 };
    assert_eq!(error, DecodeError { field: "x".to_owned(), position: 0, reason });
}

#[test]
fn items_without_bytes_are_not_looped_over() {
    for items in [
        r#""null""#,
        r#"{"type":"fixed","name":"F","size":0}"#,
        r#"{"type":"record","name":"R","fields":[{"name":"n","type":"null"}]}"#,
    ] {
        let field = format!(r#"{{"name":"x","type":{{"type":"array","items":{items}}}}}"#);
        let plan = Plan::new(&with_extra_fields(&field)).unwrap();
        let body = with_extra_bytes(&longs(&[i64::MAX, i64::MIN, 0, 7, 0]));
        assert_eq!(decode(&plan, &body), Ok(vec![HIT]), "{items}");
    }
}

#[test]
fn the_shortest_items_fill_a_body_to_its_last_byte() {
    for items in [
        r#"{"type":"array","items":["null","double"]}"#,
        r#"{"type":"array","items":
            {"type":"record","name":"R","fields":[{"name":"r","type":["R","null"]}]}}"#,
        r#"{"type":"array","items":{"type":"array","items":"double"}}"#,
        r#"{"type":"map","values":"null"}"#,
    ] {
        let last = format!(r#"}},{{"name":"x","type":{items}}}]}}"#);
        let ours =
            increment_schema(r#""string""#, r#""string""#, r#""long""#, r#""long""#, r#""null""#);
        let plan = Plan::new(&ours.replacen("}]}", &last, 1)).unwrap();
        // Ten items: branches, arrays without items, or keys without letters. A null is R's second
        // branch.
        let item = i64::from(items.contains('R'));
        let body = longs(&[&[0, 0, 3, 4, 10][..], &[item; 10], &[0]].concat());
        assert_eq!(decode(&plan, &body).map(|read| read.len()), Ok(1), "{items}");
    }
}

#[test]
fn a_chain_that_is_too_deep_is_an_error_and_no_stack_overflow() {
    let list = r#"{"name":"x","type":
        {"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}}"#;
    let plan = Plan::new(&with_extra_fields(list)).unwrap();
    // Each link is a record and a union.
    let chain = |links: usize| with_extra_bytes(&longs(&[vec![1; links], vec![0]].concat()));
    assert_eq!(decode(&plan, &chain(skip::MAX_DEPTH / 2 - 1)), Ok(vec![HIT]));
    for links in [skip::MAX_DEPTH / 2, 1_000_000] {
        let body = chain(links);
        let error = decode(&plan, &body).unwrap_err();
        assert_eq!((error.field.as_str(), error.reason), ("x", Reason::Depth(skip::MAX_DEPTH)));
    }
}

#[test]
fn a_type_without_values_is_an_error() {
    let endless =
        r#"{"name":"x","type":{"type":"record","name":"E","fields":[{"name":"e","type":"E"}]}}"#;
    let plan = Plan::new(&with_extra_fields(endless)).unwrap();
    assert_eq!(
        decode(&plan, &with_extra_bytes(&[])).unwrap_err().reason,
        Reason::Depth(skip::MAX_DEPTH)
    );
}

#[test]
fn a_schema_nested_beyond_reason_is_refused() {
    let mut schema = String::new();
    for _ in 0..100_000 {
        write!(schema, r#"{{"type":"array","items":"#).unwrap();
    }
    assert!(matches!(Plan::new(&schema), Err(PlanError::Json(_))));
}

#[test]
fn a_recursive_increment_reads_its_outermost_fields() {
    let parent = r#"{"name":"parent","type":["null","Increment"]}"#;
    let plan = Plan::new(&with_extra_fields(parent)).unwrap();
    // A parent without a parent, then the child.
    let mut outer = longs(&[1, 0]);
    encode::increment(&mut outer, &Increment { key: "parent", ..HIT });
    assert_eq!(decode(&plan, &with_extra_bytes(&outer)), Ok(vec![HIT]));
}
