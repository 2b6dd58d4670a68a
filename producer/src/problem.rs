//! What is answered instead of 200: the one place that knows which of the gateway's errors is which
//! HTTP status.

use std::time::Duration;

use axum::http::{HeaderName, StatusCode, header};
use strum::IntoStaticStr;
use tally_platform::http::Refusal;
use tally_platform::problem;

use crate::body::{self, Fault, MediaTypeError};
use crate::kafka_log;
use crate::limits;
use crate::message::{self, Recognised};

pub(crate) type Problem = problem::Problem<Code>;

/// When to try again where nothing better is known, in seconds.
const RETRY_S: u64 = 1;

/// Why a request was not accepted. The document's `type` and the metrics tell it by this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
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
    UnsupportedContentEncoding,
    RateLimited,
    Overloaded,
    NotReady,
    NotDelivered,
    PartlyDelivered,
    DeliveryUnknown,
    Internal,
}

impl problem::Code for Code {
    type Fault = Fault;

    fn status(self) -> StatusCode {
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
            Code::UnsupportedMediaType | Code::UnsupportedContentEncoding => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::Overloaded | Code::NotReady | Code::NotDelivered => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            // Not 503, which proxies and client libraries repeat by themselves: without ids, what
            // did arrive would count twice.
            Code::PartlyDelivered | Code::DeliveryUnknown => StatusCode::GATEWAY_TIMEOUT,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
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
            Code::MessageTooLarge => "The request does not fit into messages of the log",
            Code::TooManyIncrements => {
                "More increments than the rate limit can ever let through at once"
            }
            Code::UnsupportedMediaType => "The body's media type is not supported",
            Code::UnsupportedContentEncoding => "The body's content encoding is not supported",
            Code::RateLimited => "The rate limit is reached",
            Code::Overloaded => "Too many requests are in progress",
            Code::NotReady => "The gateway is not ready yet",
            Code::NotDelivered => "The log did not take the request",
            Code::PartlyDelivered => "The log took only a part of the request",
            Code::DeliveryUnknown => "The log did not confirm the request",
            Code::Internal => "The gateway failed",
        }
    }

    fn refuse(refusal: Refusal) -> (Code, String) {
        match refusal {
            Refusal::NotFound { path } => (Code::NotFound, format!("{path} is not /v1/increments")),
            Refusal::MethodNotAllowed { method, .. } => {
                (Code::MethodNotAllowed, format!("{method} is not POST"))
            }
            Refusal::BodyTooLarge { max_bytes } => (
                Code::BodyTooLarge,
                format!("it has more than {max_bytes} bytes, the most allowed"),
            ),
            Refusal::UnreadBody { reason } => (Code::MalformedBody, reason),
            Refusal::BodyTimeout { after } => {
                (Code::BodyTimeout, format!("it took longer than {after:?}"))
            }
            Refusal::NoRoom { room_bytes } => (
                Code::Overloaded,
                format!("the bodies of all requests come to {room_bytes} bytes, the most allowed"),
            ),
            Refusal::UnsupportedEncoding { given } => (
                Code::UnsupportedContentEncoding,
                format!("Content-Encoding {given:?} is none of gzip, zstd, identity"),
            ),
            Refusal::TooManyConnections => {
                (Code::Overloaded, "there are too many connections".to_owned())
            }
            Refusal::Panicked => (Code::Internal, "the gateway's log tells more".to_owned()),
        }
    }

    /// What became of the request's increments. Only where it is unknown may sending the request
    /// again count some of them twice, unless they have ids or the request an Idempotency-Key.
    fn outcome(self) -> Option<&'static str> {
        match self {
            Code::PartlyDelivered | Code::DeliveryUnknown | Code::Internal => Some("unknown"),
            _ => Some("not_applied"),
        }
    }

    /// Not where the outcome is unknown: clients that go by it would count twice what did arrive.
    fn retry_after_s(self) -> Option<u64> {
        matches!(self, Code::Overloaded | Code::NotReady | Code::NotDelivered).then_some(RETRY_S)
    }

    fn header(self) -> Option<(HeaderName, &'static str)> {
        match self {
            Code::UnsupportedMediaType => Some((
                HeaderName::from_static("accept-post"),
                "application/json, application/x-ndjson, application/avro",
            )),
            Code::UnsupportedContentEncoding => Some((header::ACCEPT_ENCODING, "gzip, zstd")),
            Code::MethodNotAllowed => Some((header::ALLOW, "POST")),
            _ => None,
        }
    }
}

impl From<limits::Error> for Problem {
    fn from(error: limits::Error) -> Problem {
        let (code, retry_after_s) = match error {
            limits::Error::TooManyRequests { .. } => (Code::Overloaded, Some(RETRY_S)),
            limits::Error::RateLimited { wait, .. } => {
                (Code::RateLimited, Some(whole_seconds(wait)))
            }
            limits::Error::BeyondRateLimit { .. } => (Code::TooManyIncrements, None),
        };
        Problem { retry_after_s, ..Problem::new(code, error.to_string()) }
    }
}

/// Rounded up, so that whoever waits so long has waited enough.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

impl From<MediaTypeError> for Problem {
    fn from(error: MediaTypeError) -> Problem {
        Problem::new(Code::UnsupportedMediaType, error.to_string())
    }
}

impl From<body::Error> for Problem {
    fn from(error: body::Error) -> Problem {
        match error {
            body::Error::Malformed(fault) => {
                let detail = fault.reason.clone();
                Problem { errors: vec![fault], ..Problem::new(Code::MalformedBody, detail) }
            }
            body::Error::Invalid(faults) => {
                let detail = match faults.listed.len() + faults.omitted {
                    1 => "1 error; nothing of the request is counted".to_owned(),
                    errors => format!("{errors} errors; nothing of the request is counted"),
                };
                Problem {
                    errors: faults.listed,
                    errors_omitted: faults.omitted,
                    ..Problem::new(Code::InvalidIncrements, detail)
                }
            }
        }
    }
}

impl From<message::Error> for Problem {
    fn from(error: message::Error) -> Problem {
        let code = match error {
            message::Error::Key(_) | message::Error::OtherId { .. } => Code::InvalidIdempotencyKey,
            message::Error::TooManyDeltas { .. } | message::Error::TooLong { .. } => {
                Code::MessageTooLarge
            }
        };
        Problem::new(code, error.to_string())
    }
}

/// What is answered where not all of a request got into the log.
pub(crate) fn not_appended(error: &kafka_log::Error, recognised: Recognised) -> Problem {
    let code = match error {
        kafka_log::Error::QueueFull => Code::Overloaded,
        kafka_log::Error::TooLongForClient | kafka_log::Error::TooLongForTopic => {
            Code::MessageTooLarge
        }
        kafka_log::Error::NotDelivered(_) => Code::NotDelivered,
        kafka_log::Error::InPart { .. } => Code::PartlyDelivered,
        kafka_log::Error::Unknown { .. } => Code::DeliveryUnknown,
    };
    let detail = match code {
        Code::PartlyDelivered | Code::DeliveryUnknown => {
            format!("{error}; {}", sent_again(recognised))
        }
        _ => error.to_string(),
    };
    Problem::new(code, detail)
}

/// What sending a request again does, all or a part of which is in the log or may be.
fn sent_again(recognised: Recognised) -> String {
    match recognised {
        Recognised::Whole => {
            "sent again with the same Idempotency-Key or ids, each of its increments counts once"
                .to_owned()
        }
        Recognised::AllBut { bare } => format!(
            "sent again with the same ids, each increment that has one counts once; \
             the {bare} without one may count twice"
        ),
        Recognised::Nothing => "sent again, it may count twice: it has neither ids nor an \
                                Idempotency-Key"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_rounded_up_to_whole_seconds() {
        for (wait_ms, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_500, 60)] {
            assert_eq!(whole_seconds(Duration::from_millis(wait_ms)), seconds);
        }
    }
}
