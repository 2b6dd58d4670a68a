//! What a request asks for: parsed once from its URL, its headers and its form.
//!
//! ```text
//!  ?query=&database=&param_x=&max_threads=…  ─┐   names with a meaning ──► fields
//!  X-ClickHouse-*, Authorization             ─┼─► param_*              ──► parameters
//!  form fields (as if in the URL)            ─┘   any other name        ──► settings
//! ```

use std::time::Duration;

use axum::http::{HeaderMap, Method, header};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use percent_encoding::percent_decode_str;

use crate::{
    body::Encoding,
    exception::{Exception, exception},
    sql::{self, Setting},
};

const DEFAULT_FORMAT: &str = "TabSeparated";
const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_SESSION_TIMEOUT: Duration = Duration::from_secs(3600);

/// The one user there is. It has no password, so that any is right.
const USER: &str = "default";

/// Names that ClickHouse gives a meaning outside its settings, and that mean nothing here: answers
/// are always buffered whole, roles do not exist, and formats are written as for the oldest
/// protocol.
const IGNORED: &[&str] = &[
    "buffer_size",
    "client_protocol_version",
    "close_session",
    "password",
    "quota_key",
    "role",
    "stacktrace",
    "user",
    "wait_end_of_query",
];

#[derive(Debug)]
pub(crate) struct Call {
    /// The beginning of the statement, or all of it; the body continues it.
    pub(crate) query: Vec<u8>,
    pub(crate) query_id: Option<String>,
    pub(crate) database: Option<String>,
    /// The output format of a statement that names none.
    pub(crate) format: String,
    /// The answer is to be sent in compressed blocks.
    pub(crate) compress: bool,
    /// The body comes in compressed blocks.
    pub(crate) decompress: bool,
    pub(crate) encoding: Encoding,
    pub(crate) session: Option<SessionCall>,
    pub(crate) settings: Vec<Setting>,
    pub(crate) parameters: Vec<(String, String)>,
    /// A GET changes nothing.
    pub(crate) read_only: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SessionCall {
    pub(crate) id: String,
    pub(crate) timeout: Duration,
    /// The session must exist already.
    pub(crate) must_exist: bool,
}

impl Call {
    pub(crate) fn new(
        method: &Method,
        headers: &HeaderMap,
        pairs: Vec<(String, String)>,
    ) -> Result<Self, Exception> {
        let mut call = Self {
            query: Vec::new(),
            query_id: text_header(headers, "x-clickhouse-query-id")?,
            database: text_header(headers, "x-clickhouse-database")?,
            format: text_header(headers, "x-clickhouse-format")?
                .unwrap_or_else(|| DEFAULT_FORMAT.to_owned()),
            compress: false,
            decompress: false,
            encoding: encoding(headers)?,
            session: None,
            settings: Vec::new(),
            parameters: Vec::new(),
            read_only: method == Method::GET,
        };
        let mut user = header_user(headers)?;
        let (mut session_id, mut session_timeout, mut must_exist) =
            (None, DEFAULT_SESSION_TIMEOUT, false);
        for (name, value) in pairs {
            match name.as_str() {
                "query" => call.query.extend_from_slice(value.as_bytes()),
                "query_id" => call.query_id = filled(value),
                "database" => call.database = filled(value),
                "default_format" => call.format = value,
                "compress" => call.compress = flag(&name, &value)?,
                "decompress" => call.decompress = flag(&name, &value)?,
                "session_id" => session_id = filled(value),
                "session_timeout" => session_timeout = timeout(&value)?,
                "session_check" => must_exist = flag(&name, &value)?,
                "user" => user = Some(value),
                _ if IGNORED.contains(&name.as_str()) => {}
                _ => match name.strip_prefix("param_") {
                    Some(name) => call.parameters.push((name.to_owned(), value)),
                    None => call.settings.push(Setting { name, literal: sql::literal(&value) }),
                },
            }
        }
        authenticate(user.as_deref())?;
        call.session =
            session_id.map(|id| SessionCall { id, timeout: session_timeout, must_exist });
        Ok(call)
    }
}

/// The pairs of a URL's query, decoded.
pub(crate) fn pairs(query: &str) -> Result<Vec<(String, String)>, Exception> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name, name)?;
            let value = decode(value, &name)?;
            Ok((name, value))
        })
        .collect()
}

fn decode(text: &str, name: &str) -> Result<String, Exception> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded
        .map(|text| text.into_owned())
        .map_err(|_| exception!(BAD_ARGUMENTS, "Parameter {name} of the URL is not UTF-8"))
}

fn filled(value: String) -> Option<String> {
    Some(value).filter(|value| !value.is_empty())
}

fn flag(name: &str, value: &str) -> Result<bool, Exception> {
    match value {
        "1" | "true" => Ok(true),
        "0" | "false" | "" => Ok(false),
        _ => Err(exception!(BAD_ARGUMENTS, "Parameter {name} must be 0 or 1, not {value}")),
    }
}

fn timeout(value: &str) -> Result<Duration, Exception> {
    let timeout = value
        .parse()
        .map(Duration::from_secs)
        .map_err(|_| exception!(INVALID_SESSION_TIMEOUT, "Invalid session timeout: '{value}'"))?;
    if timeout > MAX_SESSION_TIMEOUT {
        return Err(exception!(
            INVALID_SESSION_TIMEOUT,
            "Session timeout '{value}' is larger than {}",
            MAX_SESSION_TIMEOUT.as_secs()
        ));
    }
    Ok(timeout)
}

fn text_header(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, Exception> {
    headers
        .get(name)
        .map(|value| {
            std::str::from_utf8(value.as_bytes())
                .map(str::to_owned)
                .map_err(|_| exception!(BAD_ARGUMENTS, "Header {name} is not UTF-8"))
        })
        .transpose()
        .map(|value| value.and_then(filled))
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Exception> {
    match headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"" | b"identity") => Ok(Encoding::Identity),
        Some(b"lz4") => Ok(Encoding::Lz4),
        Some(other) => Err(exception!(
            NOT_IMPLEMENTED,
            "Content-Encoding {} is not supported here: lz4 is",
            other.escape_ascii()
        )),
    }
}

fn header_user(headers: &HeaderMap) -> Result<Option<String>, Exception> {
    let Some(authorization) = headers.get(header::AUTHORIZATION) else {
        return text_header(headers, "x-clickhouse-user");
    };
    let user = authorization
        .as_bytes()
        .strip_prefix(b"Basic ")
        .and_then(|encoded| BASE64_STANDARD.decode(encoded.trim_ascii()).ok())
        .and_then(|credentials| String::from_utf8(credentials).ok())
        .and_then(|credentials| credentials.split_once(':').map(|(user, _)| user.to_owned()))
        .ok_or_else(|| {
            exception!(
                AUTHENTICATION_FAILED,
                "Invalid authentication: Authorization must be Basic, with user:password in base64"
            )
        })?;
    Ok(Some(user))
}

fn authenticate(user: Option<&str>) -> Result<(), Exception> {
    match user {
        None | Some("" | USER) => Ok(()),
        Some(other) => Err(exception!(
            AUTHENTICATION_FAILED,
            "{other}: Authentication failed: the only user here is {USER}, without a password"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(query: &str, headers: &[(&'static str, &str)]) -> Result<Call, u32> {
        let headers = headers.iter().map(|(name, value)| {
            (header::HeaderName::from_static(name), header::HeaderValue::from_str(value).unwrap())
        });
        let headers = headers.collect();
        let call = pairs(query).and_then(|pairs| Call::new(&Method::POST, &headers, pairs));
        call.map_err(|exception| exception.code())
    }

    #[test]
    fn names_become_fields_parameters_and_settings() {
        let call = call(
            "query=SELECT+%27%2B%27&database=d&param_x=a%09b&max_threads=1&compress=1\
             &async_insert=it%27s&role=r",
            &[("x-clickhouse-database", "other"), ("x-clickhouse-format", "CSV")],
        )
        .unwrap();
        assert_eq!(call.query, b"SELECT '+'");
        assert_eq!(call.database.as_deref(), Some("d"));
        assert_eq!(call.format, "CSV");
        assert!(call.compress && !call.decompress && !call.read_only);
        assert_eq!(call.parameters, [("x".to_owned(), "a\tb".to_owned())]);
        let settings: Vec<_> =
            call.settings.iter().map(|s| (s.name.as_str(), s.literal.as_str())).collect();
        assert_eq!(settings, [("max_threads", "'1'"), ("async_insert", r"'it\'s'")]);
        assert_eq!(call.session, None);
    }

    #[test]
    fn a_session_has_an_id_and_a_bounded_timeout() {
        let session =
            call("session_id=s&session_timeout=90&session_check=1", &[]).unwrap().session.unwrap();
        let expected =
            SessionCall { id: "s".into(), timeout: Duration::from_secs(90), must_exist: true };
        assert_eq!(session, expected);
        assert_eq!(call("session_id=s&session_timeout=3601", &[]).unwrap_err(), 374);
        assert_eq!(call("session_id=s&session_timeout=-1", &[]).unwrap_err(), 374);
    }

    #[test]
    fn the_default_user_gets_in_by_any_scheme_and_others_do_not() {
        let basic = |credentials: &str| format!("Basic {}", BASE64_STANDARD.encode(credentials));
        assert!(call("user=default&password=x", &[]).is_ok());
        assert!(call("", &[("x-clickhouse-user", "default"), ("x-clickhouse-key", "x")]).is_ok());
        assert!(call("", &[("authorization", &basic("default:x:y"))]).is_ok());
        assert_eq!(call("user=root", &[]).unwrap_err(), 516);
        assert_eq!(call("", &[("x-clickhouse-user", "root")]).unwrap_err(), 516);
        assert_eq!(call("", &[("authorization", &basic("root:"))]).unwrap_err(), 516);
        assert_eq!(call("", &[("authorization", "Bearer x")]).unwrap_err(), 516);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert_eq!(call("query=%ff", &[]).unwrap_err(), 36);
        assert_eq!(call("decompress=yes", &[]).unwrap_err(), 36);
        assert_eq!(call("", &[("content-encoding", "br")]).unwrap_err(), 48);
    }
}
