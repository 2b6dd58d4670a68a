//! What is answered instead of 200: RFC 9457 problem documents.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// How many faults a document lists; of the others it tells the number.
const LISTED_FAULTS: usize = 100;

/// Why a request was not accepted. The document's `type` and the metrics tell it by this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    MalformedBody,
    InvalidIncrements,
    InvalidIdempotencyKey,
    NotFound,
    MethodNotAllowed,
    BodyTimeout,
    BodyTooLarge,
    MessageTooLarge,
    TooManyIncrements,
    UnsupportedMediaType,
    RateLimited,
    Overloaded,
    NotReady,
    NotDelivered,
    DeliveryUnknown,
    Internal,
}

impl Code {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Code::MalformedBody | Code::InvalidIncrements | Code::InvalidIdempotencyKey => {
                StatusCode::BAD_REQUEST
            }
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Code::BodyTooLarge | Code::MessageTooLarge | Code::TooManyIncrements => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::Overloaded | Code::NotReady | Code::NotDelivered | Code::DeliveryUnknown => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Code::MalformedBody => "malformed_body",
            Code::InvalidIncrements => "invalid_increments",
            Code::InvalidIdempotencyKey => "invalid_idempotency_key",
            Code::NotFound => "not_found",
            Code::MethodNotAllowed => "method_not_allowed",
            Code::BodyTimeout => "body_timeout",
            Code::BodyTooLarge => "body_too_large",
            Code::MessageTooLarge => "message_too_large",
            Code::TooManyIncrements => "too_many_increments",
            Code::UnsupportedMediaType => "unsupported_media_type",
            Code::RateLimited => "rate_limited",
            Code::Overloaded => "overloaded",
            Code::NotReady => "not_ready",
            Code::NotDelivered => "not_delivered",
            Code::DeliveryUnknown => "delivery_unknown",
            Code::Internal => "internal",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Code::MalformedBody => "The body cannot be read",
            Code::InvalidIncrements => "Some increments cannot be counted",
            Code::InvalidIdempotencyKey => "The Idempotency-Key cannot be used",
            Code::NotFound => "There is nothing here",
            Code::MethodNotAllowed => "The method is not allowed here",
            Code::BodyTimeout => "The body did not arrive in time",
            Code::BodyTooLarge => "The body is too large",
            Code::MessageTooLarge => "The request does not fit into one message of the log",
            Code::TooManyIncrements => {
                "More increments than the rate limit can ever let through at once"
            }
            Code::UnsupportedMediaType => "The body's media type is not supported",
            Code::RateLimited => "The rate limit is reached",
            Code::Overloaded => "Too many requests are in progress",
            Code::NotReady => "The gateway is not ready yet",
            Code::NotDelivered => "The log did not take the request",
            Code::DeliveryUnknown => "The log did not confirm the request",
            Code::Internal => "The gateway failed",
        }
    }

    /// What became of the request's increments. Only where it is unknown may sending the request
    /// again count it twice, unless it has an Idempotency-Key.
    fn outcome(self) -> &'static str {
        match self {
            Code::DeliveryUnknown | Code::Internal => "unknown",
            _ => "not_applied",
        }
    }
}

/// One thing that is wrong with a body, and where. Items count from 0, lines and columns from 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) item: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) column: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    pub(crate) reason: String,
}

/// All that is wrong with a body: the first faults, and how many more there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) listed: Vec<Fault>,
    pub(crate) omitted: usize,
}

impl Faults {
    /// Takes the fault in; it is made only if it is listed.
    pub(crate) fn push(&mut self, fault: impl FnOnce() -> Fault) {
        if self.listed.len() < LISTED_FAULTS {
            self.listed.push(fault());
        } else {
            self.omitted += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }
}

#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    pub(crate) detail: String,
    pub(crate) faults: Faults,
    /// When it may be worth trying again, in seconds.
    pub(crate) retry_after_s: Option<u64>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    errors: &'a [Fault],
    #[serde(skip_serializing_if = "Option::is_none")]
    errors_omitted: Option<usize>,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Problem {
        Problem { code, detail: detail.into(), faults: Faults::default(), retry_after_s: None }
    }

    pub(crate) fn retry_after(self, seconds: u64) -> Problem {
        Problem { retry_after_s: Some(seconds), ..self }
    }

    /// The body as a whole cannot be read.
    pub(crate) fn malformed(fault: Fault) -> Problem {
        let detail = fault.reason.clone();
        let faults = Faults { listed: vec![fault], omitted: 0 };
        Problem { faults, ..Problem::new(Code::MalformedBody, detail) }
    }

    pub(crate) fn invalid(faults: Faults) -> Problem {
        let detail = match faults.listed.len() + faults.omitted {
            1 => "1 error; nothing of the request is counted".to_owned(),
            errors => format!("{errors} errors; nothing of the request is counted"),
        };
        Problem { faults, ..Problem::new(Code::InvalidIncrements, detail) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Problem { code, detail, faults, retry_after_s } = self;
        let document = Document {
            r#type: format!("urn:tally:problem:{}", code.as_str()),
            title: code.title(),
            status: code.status().as_u16(),
            detail: &detail,
            outcome: code.outcome(),
            errors: &faults.listed,
            errors_omitted: (faults.omitted > 0).then_some(faults.omitted),
        };
        let mut response = (code.status(), Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        match code {
            Code::UnsupportedMediaType => {
                let accepted = "application/json, application/x-ndjson, application/avro";
                headers.insert("accept-post", HeaderValue::from_static(accepted));
            }
            Code::MethodNotAllowed => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            _ => {}
        }
        response
    }
}
