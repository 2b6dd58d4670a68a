//! Answers and exceptions as HTTP responses, with the headers that clients read.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::json;

use crate::{
    compression::compress, engine::Identity, exception::Exception, ffi::QueryResult,
    run::FormattedResult,
};

const QUERY_ID: HeaderName = HeaderName::from_static("x-clickhouse-query-id");
const DISPLAY_NAME: HeaderName = HeaderName::from_static("x-clickhouse-server-display-name");
const TIMEZONE: HeaderName = HeaderName::from_static("x-clickhouse-timezone");
const FORMAT: HeaderName = HeaderName::from_static("x-clickhouse-format");
const SUMMARY: HeaderName = HeaderName::from_static("x-clickhouse-summary");
const EXCEPTION_CODE: HeaderName = HeaderName::from_static("x-clickhouse-exception-code");

/// What every response to a call needs, whatever comes of it.
pub(crate) struct Envelope {
    pub(crate) query_id: String,
    /// The body is to be sent in compressed blocks.
    pub(crate) compress: bool,
}

impl Envelope {
    pub(crate) fn answer(&self, identity: &Identity, outcome: FormattedResult) -> Response {
        let FormattedResult { answer, format } = outcome;
        let summary = summary(&answer);
        let mut response =
            self.response(identity, StatusCode::OK, content_type(&format), answer.body);
        insert(&mut response, SUMMARY, &summary);
        insert(&mut response, FORMAT, &format);
        response
    }

    pub(crate) fn exception(&self, identity: &Identity, exception: &Exception) -> Response {
        let text = exception.body(&identity.version);
        let mut response =
            self.response(identity, exception.status(), "text/plain; charset=UTF-8", text.into());
        insert(&mut response, EXCEPTION_CODE, &exception.code().to_string());
        response
    }

    fn response(
        &self,
        identity: &Identity,
        status: StatusCode,
        content_type: &'static str,
        body: Bytes,
    ) -> Response {
        let body = if self.compress { compress(&body).into() } else { body };
        let mut response = (status, [(header::CONTENT_TYPE, content_type)], body).into_response();
        insert(&mut response, QUERY_ID, &self.query_id);
        insert(&mut response, DISPLAY_NAME, &identity.host);
        insert(&mut response, TIMEZONE, &identity.timezone);
        response
    }
}

/// Leaves a header out when its value cannot be one: a query id may be any text.
fn insert(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn summary(answer: &QueryResult) -> String {
    let count = |number: u64| number.to_string();
    json!({
        "read_rows": count(answer.rows_read),
        "read_bytes": count(answer.bytes_read),
        "written_rows": count(answer.rows_written),
        "written_bytes": count(answer.bytes_written),
        "total_rows_to_read": "0",
        "result_rows": count(answer.rows),
        "result_bytes": count(answer.body.len() as u64),
        "elapsed_ns": count((answer.elapsed_seconds * 1e9) as u64),
    })
    .to_string()
}

fn content_type(format: &str) -> &'static str {
    match format {
        "JSON"
        | "JSONCompact"
        | "JSONStrings"
        | "JSONCompactStrings"
        | "JSONColumns"
        | "JSONColumnsWithMetadata" => "application/json; charset=UTF-8",
        _ if format.starts_with("CSV") => "text/csv; charset=UTF-8; header=absent",
        _ if format.starts_with("TSV") || format.starts_with("TabSeparated") => {
            "text/tab-separated-values; charset=UTF-8"
        }
        _ if format.starts_with("JSON") => "application/x-ndjson; charset=UTF-8",
        _ if format.starts_with("Pretty") => "text/plain; charset=UTF-8",
        _ => "application/octet-stream",
    }
}
