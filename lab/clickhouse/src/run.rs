//! Runs one call on a connection.
//!
//! ```text
//!  URL's query + body ──parse──► statement
//!  connection: USE, SET ──► the statement ──► answer
//!  a session's connection: … ──► what the call set is taken back
//! ```

use std::io::{self, Read, Write};

use crate::{
    body,
    call::Call,
    exception::{Exception, exception},
    ffi::{Connection, QueryResult},
    spool::Spool,
    sql::{self, Insert, Setting, Source, Statement},
};

/// How much data is handed to an insert at a time.
const APPEND_BYTES: usize = 1 << 20;

/// The engine caches what it learned of a file by its path, and the paths of [`Spool`]s are used
/// again.
const FORGET_FILES: &[&str] = &[
    "use_cache_for_count_from_files",
    "use_parquet_metadata_cache",
    "schema_inference_use_cache_for_file",
];

/// The answer, and the name of the format it is in.
pub(crate) struct FormattedResult {
    pub(crate) answer: QueryResult,
    pub(crate) format: String,
}

/// Runs a call on a connection of its own.
pub(crate) fn run(
    connection: &mut Connection,
    call: &Call,
    mut data: impl Read,
) -> Result<FormattedResult, Exception> {
    let (text, statement) = statement(&call.query, &mut data)?;
    let mut settings = settings(call, &statement);
    if call.read_only {
        settings.push(Setting { name: "readonly".to_owned(), literal: "2".to_owned() });
    }
    enter(connection, call.database.as_deref(), &settings)?;
    execute(connection, call, &text, statement, data)
}

/// Runs a call on a session's connection, where only what its statement sets stays. The second
/// value is false when the rest could not be taken back, so that the session must end.
///
/// A GET may change things here: a connection that was made read-only once stays so.
pub(crate) fn run_in_session(
    connection: &mut Connection,
    call: &Call,
    mut data: impl Read,
) -> (Result<FormattedResult, Exception>, bool) {
    let entered = statement(&call.query, &mut data).and_then(|(text, statement)| {
        let settings = settings(call, &statement);
        let undo = undo(connection, call.database.is_some(), &settings)?;
        Ok((text, statement, settings, undo))
    });
    let (text, statement, settings, undo) = match entered {
        Ok(entered) => entered,
        Err(exception) => return (Err(exception), true),
    };
    let outcome = enter(connection, call.database.as_deref(), &settings)
        .and_then(|()| execute(connection, call, &text, statement, data));
    let undone = undo.iter().try_for_each(|sql| command(connection, sql));
    if let Err(exception) = &undone {
        tracing::warn!(%exception, "take back what a call set in its session; the session ends");
    }
    (outcome, undone.is_ok())
}

/// The statement's text and what it is. The body continues the text, unless the URL's part is an
/// INSERT that is complete: then all of it is data, and it stays unread.
fn statement(query: &[u8], data: &mut impl Read) -> Result<(Vec<u8>, Statement), Exception> {
    let mut text = query.to_vec();
    if let Ok(statement @ Statement::Insert(_)) = Statement::parse(&text) {
        return Ok((text, statement));
    }
    if !text.is_empty() {
        text.push(b'\n');
    }
    data.read_to_end(&mut text).map_err(body::exception)?;
    if text.trim_ascii().is_empty() {
        return Err(exception!(SYNTAX_ERROR, "Empty query"));
    }
    let statement = Statement::parse(&text)?;
    Ok((text, statement))
}

fn settings(call: &Call, statement: &Statement) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Statement::Insert(Insert { source: Source::Input(_), .. }) = statement {
        let off = |name: &&str| Setting { name: (*name).to_owned(), literal: "0".to_owned() };
        settings.extend(FORGET_FILES.iter().map(off));
    }
    settings.extend_from_slice(&call.settings);
    if let Statement::Insert(insert) = statement {
        settings.extend_from_slice(&insert.settings);
    }
    settings
}

fn enter(
    connection: &mut Connection,
    database: Option<&str>,
    settings: &[Setting],
) -> Result<(), Exception> {
    if let Some(database) = database {
        command(connection, &format!("USE {}", sql::identifier(database)))?;
    }
    if !settings.is_empty() {
        let list: Vec<_> = settings
            .iter()
            .map(|setting| format!("{} = {}", sql::identifier(&setting.name), setting.literal))
            .collect();
        command(connection, &format!("SET {}", list.join(", ")))?;
    }
    Ok(())
}

fn execute(
    connection: &mut Connection,
    call: &Call,
    text: &[u8],
    statement: Statement,
    data: impl Read,
) -> Result<FormattedResult, Exception> {
    let insert = match statement {
        Statement::Query { format } => {
            let answer = connection.query(text, &call.format, &call.parameters)?;
            return Ok(FormattedResult {
                answer,
                format: format.unwrap_or_else(|| call.format.clone()),
            });
        }
        Statement::Insert(insert) => insert,
    };
    let mut data = (&text[insert.data..]).chain(data);
    let answer = match &insert.source {
        Source::Select => connection.query(insert.head(text), &call.format, &call.parameters)?,
        Source::Data => append(connection, call, &insert, text, &mut data)?,
        Source::Input(input) => {
            let spool = spool(&mut data)?;
            let sql = insert.reading_file(text, input, &spool.path());
            connection.query(&sql, &call.format, &call.parameters)?
        }
    };
    Ok(FormattedResult { answer, format: call.format.clone() })
}

fn append(
    connection: &mut Connection,
    call: &Call,
    insert: &Insert,
    text: &[u8],
    data: &mut impl Read,
) -> Result<QueryResult, Exception> {
    let mut stream = connection.insert(insert.head(text), &insert.format, &call.parameters)?;
    chunks(data, |chunk| stream.append(chunk))?;
    stream.finish()
}

fn spool(data: &mut impl Read) -> Result<Spool, Exception> {
    let full = |error: io::Error| {
        exception!(CANNOT_WRITE_TO_FILE_DESCRIPTOR, "Cannot keep the data for input(): {error}")
    };
    let mut spool = Spool::new().map_err(full)?;
    chunks(data, |chunk| spool.0.write_all(chunk).map_err(full))?;
    Ok(spool)
}

/// Hands all of the data over, [`APPEND_BYTES`] at a time.
fn chunks(
    data: &mut impl Read,
    mut take: impl FnMut(&[u8]) -> Result<(), Exception>,
) -> Result<(), Exception> {
    let mut chunk = Vec::with_capacity(APPEND_BYTES);
    loop {
        chunk.clear();
        data.by_ref().take(APPEND_BYTES as u64).read_to_end(&mut chunk).map_err(body::exception)?;
        if chunk.is_empty() {
            return Ok(());
        }
        take(&chunk)?;
    }
}

/// A statement without an answer.
fn command(connection: &mut Connection, sql: &str) -> Result<(), Exception> {
    connection.query(sql.as_bytes(), "Null", &[]).map(drop)
}

/// The commands that take back what a call sets for itself in a session.
fn undo(
    connection: &mut Connection,
    database: bool,
    settings: &[Setting],
) -> Result<Vec<String>, Exception> {
    let mut commands = Vec::new();
    if database {
        let current = text(connection, "SELECT currentDatabase()")?;
        commands.push(format!("USE {}", sql::identifier(&current)));
    }
    if !settings.is_empty() {
        let names: Vec<_> = settings.iter().map(|setting| sql::literal(&setting.name)).collect();
        // A setting at its default may have a value that cannot be set, such as 'auto(2)'.
        let assignments = text(
            connection,
            &format!(
                r"SELECT arrayStringConcat(
                          groupArray(name || ' = ' || if(changed, quoted, 'DEFAULT')), ', ')
                      FROM (SELECT name, changed,
                          '\'' || replaceAll(replaceAll(value, '\\', '\\\\'), '\'', '\\\'') || '\''
                          AS quoted
                            FROM system.settings WHERE name IN ({}))",
                names.join(", ")
            ),
        )?;
        if !assignments.is_empty() {
            commands.push(format!("SET {assignments}"));
        }
    }
    Ok(commands)
}

/// The one value that a query gives.
fn text(connection: &mut Connection, sql: &str) -> Result<String, Exception> {
    let answer = connection.query(sql.as_bytes(), "RawBLOB", &[])?;
    String::from_utf8(answer.body.to_vec())
        .map_err(|_| exception!(LOGICAL_ERROR, "Not UTF-8: the answer to {sql}"))
}
