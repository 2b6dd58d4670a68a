//! What is answered instead of 200: RFC 9457 problem documents.

use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tally_counts::Position;

use crate::memory::{Broken, SnapshotError};
use crate::misses::LookupError;
use crate::state::WaitError;
use crate::store::StoreError;

/// When to ask again where it may help, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// Why a request was not answered. The document's `type` and the metrics tell it by this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidRequest,
    MalformedBody,
    NotFound,
    MethodNotAllowed,
    BodyTooLarge,
    UnsupportedMediaType,
    NotReady,
    Overloaded,
    StoreUnavailable,
    StoreBehind,
    StoreDamaged,
    LogBroken,
    NotReached,
    Overflow,
    Internal,
}

impl Code {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Code::InvalidRequest | Code::MalformedBody => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::NotReady
            | Code::Overloaded
            | Code::StoreUnavailable
            | Code::StoreBehind
            | Code::StoreDamaged
            | Code::LogBroken => StatusCode::SERVICE_UNAVAILABLE,
            Code::NotReached => StatusCode::GATEWAY_TIMEOUT,
            Code::Overflow | Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Code::InvalidRequest => "invalid_request",
            Code::MalformedBody => "malformed_body",
            Code::NotFound => "not_found",
            Code::MethodNotAllowed => "method_not_allowed",
            Code::BodyTooLarge => "body_too_large",
            Code::UnsupportedMediaType => "unsupported_media_type",
            Code::NotReady => "not_ready",
            Code::Overloaded => "overloaded",
            Code::StoreUnavailable => "store_unavailable",
            Code::StoreBehind => "store_behind",
            Code::StoreDamaged => "store_damaged",
            Code::LogBroken => "log_broken",
            Code::NotReached => "not_reached",
            Code::Overflow => "overflow",
            Code::Internal => "internal",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Code::InvalidRequest => "The request cannot be answered as it is",
            Code::MalformedBody => "The body cannot be read",
            Code::NotFound => "There is nothing here",
            Code::MethodNotAllowed => "The method is not allowed here",
            Code::BodyTooLarge => "The body is too large",
            Code::UnsupportedMediaType => "The body's media type is not supported",
            Code::NotReady => "The reader is not ready yet",
            Code::Overloaded => "Too many reads wait for the store",
            Code::StoreUnavailable => "The store does not answer",
            Code::StoreBehind => "The store shows less than it did before",
            Code::StoreDamaged => "The store's counts do not prove themselves",
            Code::LogBroken => "The log's counts do not follow each other",
            Code::NotReached => "The position was not reached in time",
            Code::Overflow => "A value has more than 64 bits",
            Code::Internal => "The reader failed",
        }
    }

    /// Whether the same request may be answered in a moment.
    fn may_pass(self) -> bool {
        matches!(
            self,
            Code::NotReady
                | Code::Overloaded
                | Code::StoreUnavailable
                | Code::StoreBehind
                | Code::NotReached
        )
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
    pub(crate) fn new(field: &str, reason: impl Into<String>) -> Fault {
        Fault { item: None, field: field.to_owned(), reason: reason.into() }
    }
}

#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    pub(crate) detail: String,
    pub(crate) faults: Vec<Fault>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    errors: &'a [Fault],
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Problem {
        Problem { code, detail: detail.into(), faults: Vec::new() }
    }

    pub(crate) fn invalid(faults: Vec<Fault>) -> Problem {
        let detail = match faults.as_slice() {
            [Fault { item: None, field, reason }] => format!("`{field}`: {reason}"),
            [Fault { item: Some(item), field, reason }] => {
                format!("counters[{item}], `{field}`: {reason}")
            }
            _ => format!("{} errors", faults.len()),
        };
        Problem { faults, ..Problem::new(Code::InvalidRequest, detail) }
    }

    pub(crate) fn wait(error: &WaitError, after: &Position) -> Problem {
        match error {
            WaitError::Late { reached } => Problem::new(
                Code::NotReached,
                format!("`after` is {after}, but the log is read up to {reached}"),
            ),
            WaitError::Broken(broken) => Problem::broken(broken),
        }
    }

    pub(crate) fn broken(broken: &Arc<Broken>) -> Problem {
        Problem::new(Code::LogBroken, broken.to_string())
    }

    pub(crate) fn lookup(error: &LookupError) -> Problem {
        let code = match error {
            LookupError::Broken(broken) => return Problem::broken(broken),
            LookupError::Snapshot(SnapshotError::Behind { .. }) => Code::StoreBehind,
            LookupError::Snapshot(SnapshotError::Disagrees { .. }) => Code::StoreDamaged,
            LookupError::Store(StoreError::Unavailable { .. } | StoreError::Slow) => {
                Code::StoreUnavailable
            }
            LookupError::Store(
                StoreError::Damaged { .. }
                | StoreError::NoLedger { .. }
                | StoreError::UnknownPartition { .. },
            ) => Code::StoreDamaged,
        };
        let detail = match error {
            LookupError::Broken(broken) => broken.to_string(),
            LookupError::Snapshot(error) => error.to_string(),
            LookupError::Store(error) => error.to_string(),
        };
        Problem::new(code, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Problem { code, detail, faults } = self;
        let document = Document {
            r#type: format!("urn:tally:problem:{}", code.as_str()),
            title: code.title(),
            status: code.status().as_u16(),
            detail: &detail,
            errors: &faults,
        };
        let mut response = (code.status(), Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if code.may_pass() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        response
    }
}
