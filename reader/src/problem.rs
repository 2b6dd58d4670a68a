//! What is answered instead of 200: the one place that knows which of the reader's errors is which
//! HTTP status.

use axum::http::{HeaderName, StatusCode, header};
use strum::IntoStaticStr;
use tally_platform::http::Refusal;
use tally_platform::problem;

use crate::counter_memory::SnapshotError;
use crate::misses::LookupError;
use crate::reads;
use crate::request::{self, Fault, Faults};
use crate::store::StoreError;

pub(crate) type Problem = problem::Problem<Code>;

/// When to ask again where it may help, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// Why a request was not answered. The document's `type` and the metrics tell it by this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Code {
    InvalidRequest,
    MalformedBody,
    NotFound,
    MethodNotAllowed,
    BodyTimeout,
    BodyTooLarge,
    UnsupportedMediaType,
    UnsupportedContentEncoding,
    NotReady,
    Overloaded,
    StoreUnavailable,
    StoreBehind,
    StoreDamaged,
    LogBroken,
    PartitionStandsStill,
    NotReached,
    ValueOverflow,
    Internal,
}

impl problem::Code for Code {
    type Fault = Fault;

    fn status(self) -> StatusCode {
        match self {
            Code::InvalidRequest | Code::MalformedBody => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::UnsupportedMediaType | Code::UnsupportedContentEncoding => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            Code::NotReady
            | Code::Overloaded
            | Code::StoreUnavailable
            | Code::StoreBehind
            | Code::StoreDamaged
            | Code::LogBroken
            | Code::PartitionStandsStill => StatusCode::SERVICE_UNAVAILABLE,
            Code::NotReached => StatusCode::GATEWAY_TIMEOUT,
            Code::ValueOverflow | Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Code::InvalidRequest => "The request cannot be answered as it is",
            Code::MalformedBody => "The body cannot be read",
            Code::NotFound => "There is nothing here",
            Code::MethodNotAllowed => "The method is not allowed here",
            Code::BodyTimeout => "The body did not arrive in time",
            Code::BodyTooLarge => "The body is too large",
            Code::UnsupportedMediaType => "The body's media type is not supported",
            Code::UnsupportedContentEncoding => "The body's content encoding is not supported",
            Code::NotReady => "The reader is not ready yet",
            Code::Overloaded => "Too many reads are in progress",
            Code::StoreUnavailable => "The store does not answer",
            Code::StoreBehind => "The store shows less than it did before",
            Code::StoreDamaged => "The store's counts do not prove themselves",
            Code::LogBroken => "The log cannot be read",
            Code::PartitionStandsStill => "A partition of the log stands still",
            Code::NotReached => "The position was not reached in time",
            Code::ValueOverflow => "The counter's value is beyond what can be told",
            Code::Internal => "The reader failed",
        }
    }

    fn refuse(refusal: Refusal) -> (Code, String) {
        match refusal {
            Refusal::NotFound { path } => (Code::NotFound, path),
            Refusal::MethodNotAllowed { method, path } => {
                (Code::MethodNotAllowed, format!("{method} {path}"))
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
            Refusal::Panicked => (Code::Internal, "the reader's log tells more".to_owned()),
        }
    }

    fn header(self) -> Option<(HeaderName, &'static str)> {
        match self {
            Code::UnsupportedContentEncoding => Some((header::ACCEPT_ENCODING, "gzip, zstd")),
            _ => None,
        }
    }

    /// Where the same request may be answered in a moment.
    fn retry_after_s(self) -> Option<u64> {
        let may_pass = matches!(
            self,
            Code::NotReady
                | Code::Overloaded
                | Code::StoreUnavailable
                | Code::StoreBehind
                | Code::PartitionStandsStill
                | Code::NotReached
        );
        may_pass.then_some(RETRY_AFTER_S)
    }
}

impl From<request::Error> for Problem {
    fn from(error: request::Error) -> Problem {
        match error {
            request::Error::Malformed(reason) => Problem::new(Code::MalformedBody, reason),
            request::Error::Invalid(Faults { listed: errors, omitted }) => {
                let detail = match errors.as_slice() {
                    [Fault { item: None, field, reason }] => format!("`{field}`: {reason}"),
                    [Fault { item: Some(item), field, reason }] => {
                        format!("counters[{item}], `{field}`: {reason}")
                    }
                    _ => format!("{} errors", errors.len() + omitted),
                };
                let problem = Problem::new(Code::InvalidRequest, detail);
                Problem { errors, errors_omitted: omitted, ..problem }
            }
        }
    }
}

impl From<reads::Error> for Problem {
    fn from(error: reads::Error) -> Problem {
        let code = match &error {
            reads::Error::UnknownPartition { partition, partitions } => {
                let reason = format!("there is no partition {partition}: deltas has {partitions}");
                return Problem::from(request::Error::invalid("after", reason));
            }
            reads::Error::TooManyRanges | reads::Error::TooManyWaits | reads::Error::QueueFull => {
                Code::Overloaded
            }
            reads::Error::Stopping => Code::NotReady,
            reads::Error::NotReached { .. } => Code::NotReached,
            reads::Error::Timeout => Code::StoreUnavailable,
            reads::Error::StandsStill { .. } => Code::PartitionStandsStill,
            reads::Error::Unreadable(_) => Code::LogBroken,
            reads::Error::Lookup(lookup) => match &**lookup {
                LookupError::Unreadable(_) => Code::LogBroken,
                LookupError::Snapshot(SnapshotError::Behind { .. }) => Code::StoreBehind,
                LookupError::Snapshot(SnapshotError::Disagrees { .. }) => Code::StoreDamaged,
                LookupError::Store(StoreError::Unavailable { .. } | StoreError::Slow) => {
                    Code::StoreUnavailable
                }
                LookupError::Store(StoreError::Damaged { .. } | StoreError::NoLedger { .. }) => {
                    Code::StoreDamaged
                }
            },
        };
        Problem::new(code, error.to_string())
    }
}
