//! What is answered instead of 200: problem documents by RFC 9457.
//!
//! ```text
//!  domain error ──From, in the service's problem.rs──► Problem<Code> ──► status, headers, document
//!  Refusal of the edge ──Code::refuse───────────────►
//! ```

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::http::Refusal;

/// Why a service did not do what a request asked for; an enum with a name for each reason, by which
/// the document's `type` and the service's metrics tell it.
pub trait Code: Copy + Into<&'static str> + Send + Sync + 'static {
    /// One thing that is wrong with a request, and where: an item of the document's `errors`.
    type Fault: Serialize + Send;

    fn status(self) -> StatusCode;

    /// What the code means, for people.
    fn title(self) -> &'static str;

    /// What the service answers to what the edge refuses: the code and the detail.
    fn refuse(refusal: Refusal) -> (Self, String);

    /// What became of the request: the document's `outcome`, which it lacks where there is none.
    fn outcome(self) -> Option<&'static str> {
        None
    }

    /// When it may be worth sending the same request again, in seconds, for `Retry-After`.
    fn retry_after_s(self) -> Option<u64> {
        None
    }

    /// A header that the answer has besides.
    fn header(self) -> Option<(HeaderName, &'static str)> {
        None
    }

    fn name(self) -> &'static str {
        self.into()
    }
}

/// A code and what is to be said about this case of it.
#[derive(Debug)]
pub struct Problem<C: Code> {
    pub code: C,
    pub detail: String,
    pub errors: Vec<C::Fault>,
    /// How many errors there are besides `errors`.
    pub errors_omitted: usize,
    pub retry_after_s: Option<u64>,
}

impl<C: Code> Problem<C> {
    pub fn new(code: C, detail: impl Into<String>) -> Problem<C> {
        Problem {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            errors_omitted: 0,
            retry_after_s: code.retry_after_s(),
        }
    }

    pub fn refused(refusal: Refusal) -> Problem<C> {
        let (code, detail) = C::refuse(refusal);
        Problem::new(code, detail)
    }
}

#[derive(Serialize)]
struct Document<'a, F> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "<[F]>::is_empty")]
    errors: &'a [F],
    #[serde(skip_serializing_if = "Option::is_none")]
    errors_omitted: Option<usize>,
}

impl<C: Code> IntoResponse for Problem<C> {
    fn into_response(self) -> Response {
        let Problem { code, detail, errors, errors_omitted, retry_after_s } = self;
        let document = Document {
            r#type: format!("urn:tally:problem:{}", code.name()),
            title: code.title(),
            status: code.status().as_u16(),
            detail: &detail,
            outcome: code.outcome(),
            errors: &errors,
            errors_omitted: (errors_omitted > 0).then_some(errors_omitted),
        };
        let mut response = (code.status(), Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some((name, value)) = code.header() {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
