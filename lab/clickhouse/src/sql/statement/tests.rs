use super::*;

fn parse(text: &str) -> Statement {
    Statement::parse(text.as_bytes()).unwrap_or_else(|exception| panic!("{text}: {exception}"))
}

fn insert(text: &str) -> Insert {
    match parse(text) {
        Statement::Insert(insert) => insert,
        Statement::Query { .. } => panic!("taken for a query: {text}"),
    }
}

/// Head, format and data of an INSERT whose rows are the data.
fn split(text: &str) -> (&str, String, &str) {
    let insert = insert(text);
    assert_eq!(insert.source, Source::Data, "{text}");
    (&text[..insert.head], insert.format, &text[insert.data..])
}

fn code(text: &str) -> u32 {
    match Statement::parse(text.as_bytes()) {
        Err(exception) => exception.code(),
        Ok(statement) => panic!("{text}: taken for {statement:?}"),
    }
}

#[test]
fn data_begins_behind_the_format_and_one_line_end() {
    assert_eq!(split("INSERT INTO t FORMAT TSV\n\n1"), ("INSERT INTO t ", "TSV".into(), "\n1"));
    assert_eq!(
        split("insert into t(a) format CSV \t\r\n1"),
        ("insert into t(a) ", "CSV".into(), "1")
    );
    assert_eq!(split("INSERT INTO t FORMAT JSONEachRow {\"a\":1}").2, "{\"a\":1}");
    assert_eq!(split("INSERT INTO t FORMAT RowBinary").2, "");
}

#[test]
fn data_is_never_read_as_sql() {
    assert_eq!(
        split("INSERT INTO t FORMAT TSV\n' ; FORMAT CSV /* VALUES (").2,
        "' ; FORMAT CSV /* VALUES ("
    );
    let text =
        [b"INSERT INTO t FORMAT RowBinary\n".as_slice(), &[0xff, b'\'', 0, b';', b'\n']].concat();
    let Ok(Statement::Insert(insert)) = Statement::parse(&text) else { panic!("not an insert") };
    assert_eq!(&text[insert.data..], &[0xff, b'\'', 0, b';', b'\n']);
}

#[test]
fn values_is_a_format_of_its_own() {
    assert_eq!(
        split("INSERT INTO t (a) VALUES (1),\n(2);"),
        ("INSERT INTO t (a) ", "Values".into(), " (1),\n(2);")
    );
    assert_eq!(split("INSERT INTO values VALUES (1)").0, "INSERT INTO values ");
    assert_eq!(
        split("INSERT INTO d.values (format) VALUES (1)").0,
        "INSERT INTO d.values (format) "
    );
    assert_eq!(split("INSERT INTO `FORMAT` FORMAT Values (1)").1, "Values");
    assert!(matches!(
        parse("INSERT INTO t SELECT * FROM values('a UInt8', 1)"),
        Statement::Query { format: None }
    ));
}

#[test]
fn names_strings_and_comments_are_no_clauses() {
    assert_eq!(split("INSERT INTO format FORMAT CSV\n1").0, "INSERT INTO format ");
    assert_eq!(split("INSERT INTO t /* FORMAT TSV */ FORMAT CSV\n1").1, "CSV");
    assert_eq!(split("INSERT INTO t -- FORMAT TSV\nFORMAT CSV\n1").1, "CSV");
    assert_eq!(split("/* x */ INSERT INTO t FORMAT CSV\n1").1, "CSV");
    let text = "INSERT INTO t SELECT ' FORMAT TSV ', format, f.format AS format \
                FROM input('a UInt8') f WHERE format = 1 FORMAT CSV\n1";
    assert_eq!(insert(text).format, "CSV");
}

#[test]
fn settings_may_stand_on_both_sides_of_the_format() {
    let text = "INSERT INTO t SETTINGS async_insert = 0 FORMAT CSV \
                SETTINGS a=1, `b` = 'x, y', c = -2, d={'k':[1]} 7,8";
    let insert = insert(text);
    assert_eq!(&text[..insert.head], "INSERT INTO t SETTINGS async_insert = 0 ");
    assert_eq!(&text[insert.data..], "7,8");
    let settings: Vec<_> =
        insert.settings.iter().map(|s| (s.name.as_str(), s.literal.as_str())).collect();
    assert_eq!(settings, [("a", "1"), ("b", "'x, y'"), ("c", "-2"), ("d", "{'k':[1]}")]);
    assert_eq!(code("INSERT INTO t FORMAT CSV SETTINGS a"), 62);
    assert_eq!(code("INSERT INTO t FORMAT CSV SETTINGS a = ,"), 62);
}

#[test]
fn input_becomes_a_file() {
    let text = "INSERT INTO t SELECT a, 'input(x)' FROM \
                -- input(y)\n input ( 'a Enum8(\\'(\\' = 1)' ) \
                WHERE throwIf((SELECT sum(s) FROM t) != 1, 'fence') = 0 FORMAT RowBinary\ndata";
    let insert = insert(text);
    assert_eq!(&text[insert.data..], "data");
    let Source::Input(input) = &insert.source else { panic!("{insert:?}") };
    assert_eq!(
        String::from_utf8(insert.reading_file(text.as_bytes(), input, "/it's")).unwrap(),
        "INSERT INTO t SELECT a, 'input(x)' FROM \
         -- input(y)\n file('/it\\'s', 'RowBinary',  'a Enum8(\\'(\\' = 1)' ) \
         WHERE throwIf((SELECT sum(s) FROM t) != 1, 'fence') = 0 "
    );
}

#[test]
fn input_is_found_in_subqueries_and_joins() {
    for text in [
        "INSERT INTO t (a) SELECT a FROM (SELECT * FROM input('a UInt8')) FORMAT CSV\n1",
        "INSERT INTO t SELECT a FROM u JOIN input('a UInt8') i USING a FORMAT CSV\n1",
        "INSERT INTO t WITH x AS (SELECT 1) SELECT a FROM x, INPUT('a UInt8') FORMAT CSV\n1",
        "WITH x AS (SELECT 1) INSERT INTO t SELECT a FROM x, input('a UInt8') FORMAT CSV\n1",
    ] {
        assert!(matches!(insert(text).source, Source::Input(_)), "{text}");
    }
}

#[test]
fn input_that_is_no_table_function_stays() {
    for text in [
        "INSERT INTO t SELECT input FROM u FORMAT CSV",
        "INSERT INTO t SELECT d.input(1) FROM input FORMAT CSV",
    ] {
        assert_eq!(insert(text).source, Source::Select, "{text}");
    }
}

#[test]
fn input_needs_a_format_and_stands_once() {
    assert_eq!(code("INSERT INTO t SELECT * FROM input('a UInt8')"), 477);
    assert_eq!(
        code("INSERT INTO t SELECT * FROM input('a UInt8'), input('b UInt8') FORMAT CSV"),
        477
    );
    assert_eq!(code("INSERT INTO t SELECT * FROM input('a UInt8' FORMAT CSV"), 62);
}

#[test]
fn queries_tell_their_format() {
    let format = |text| match parse(text) {
        Statement::Query { format } => format,
        insert => panic!("{insert:?}"),
    };
    assert_eq!(format("SELECT 1 FORMAT JSON").as_deref(), Some("JSON"));
    assert_eq!(format("SELECT 1 FORMAT JSON;").as_deref(), Some("JSON"));
    assert_eq!(format("SELECT * FORMAT CSV SETTINGS max_threads = 1").as_deref(), Some("CSV"));
    assert_eq!(format("SELECT format, 1 AS format FROM format WHERE format = 'FORMAT CSV'"), None);
    assert_eq!(format("SELECT (SELECT 1 FORMAT x)"), None);
    assert_eq!(format("EXPLAIN INSERT INTO t SELECT 1 FORMAT TSV").as_deref(), Some("TSV"));
    assert_eq!(format("INSERT INTO t SELECT 1"), None);
    assert_eq!(format(""), None);
}

#[test]
fn a_second_statement_is_refused() {
    assert_eq!(code("SELECT 1; SELECT 2"), 62);
    assert_eq!(code("INSERT INTO t SELECT 1; DROP TABLE t"), 62);
    for text in ["SELECT ';' ; -- DROP TABLE t", "SELECT 1 ;;", "SELECT 1 /* ; x */"] {
        assert_eq!(parse(text), Statement::Query { format: None });
    }
}
