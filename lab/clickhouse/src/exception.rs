//! Exceptions as ClickHouse gives them: a code, a text that clients parse, an HTTP status.
//!
//! ```text
//!  engine's text "Code: 60. DB::Exception: …"  ──┐
//!  our own refusal (a Code and a message)      ──┴──► Exception ──► status, body,
//!                                                                   X-ClickHouse-Exception-Code
//! ```

use std::fmt;

use axum::http::StatusCode;

/// A row of ClickHouse's table of error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    number: u32,
    name: &'static str,
}

macro_rules! codes {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl Code {
            $(pub(crate) const $name: Code = Code { number: $number, name: stringify!($name) };)*
        }
    };
}

codes! {
    CANNOT_READ_ALL_DATA = 33,
    BAD_ARGUMENTS = 36,
    TOO_LARGE_SIZE_COMPRESSED = 39,
    CHECKSUM_DOESNT_MATCH = 40,
    NOT_IMPLEMENTED = 48,
    LOGICAL_ERROR = 49,
    SYNTAX_ERROR = 62,
    CANNOT_WRITE_TO_FILE_DESCRIPTOR = 75,
    UNKNOWN_COMPRESSION_METHOD = 89,
    TOO_MANY_SIMULTANEOUS_QUERIES = 202,
    SOCKET_TIMEOUT = 209,
    NETWORK_ERROR = 210,
    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING = 216,
    QUERY_IS_TOO_LARGE = 229,
    CANNOT_DECOMPRESS = 271,
    SESSION_NOT_FOUND = 372,
    SESSION_IS_LOCKED = 373,
    INVALID_SESSION_TIMEOUT = 374,
    INVALID_USAGE_OF_INPUT = 477,
    AUTHENTICATION_FAILED = 516,
    UNKNOWN_EXCEPTION = 1002,
}

/// An exception with a code of ClickHouse's, and a message of our own.
macro_rules! exception {
    ($code:ident, $($message:tt)+) => {
        $crate::exception::Exception::new(
            $crate::exception::Code::$code,
            format_args!($($message)+),
        )
    };
}
pub(crate) use exception;

/// An exception: its code, and the text from `Code: …` up to, but without, the version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    code: u32,
    text: String,
}

impl Exception {
    pub(crate) fn new(code: Code, message: impl fmt::Display) -> Self {
        Self {
            code: code.number,
            text: format!("Code: {}. DB::Exception: {message}. ({})", code.number, code.name),
        }
    }

    /// Reads the engine's own text. What does not begin with a code gets ClickHouse's code for
    /// that.
    pub(crate) fn from_engine(text: &str) -> Self {
        let text = without_version(text.trim_end());
        match leading_code(text) {
            Some(code) => Self { code, text: text.to_owned() },
            None => Self::new(Code::UNKNOWN_EXCEPTION, text),
        }
    }

    pub(crate) fn code(&self) -> u32 {
        self.code
    }

    /// The body that clients parse.
    pub(crate) fn body(&self, version: &str) -> String {
        format!("{} (version {version})\n", self.text)
    }

    /// The status ClickHouse answers with (`exceptionCodeToHTTPStatus.cpp`). One differs: too many
    /// queries at once is 503 here, because it is the one refusal that a client is meant to wait
    /// out.
    pub(crate) fn status(&self) -> StatusCode {
        match self.code {
            194 => StatusCode::UNAUTHORIZED,
            192 | 193 | 497 | 512 | 516 => StatusCode::FORBIDDEN,
            6 | 8 | 15 | 25 | 26 | 27 | 36 | 37 | 38 | 41 | 44 | 53 | 62 | 72 | 117 | 123 | 167
            | 168 | 223 | 321 | 376 | 427 | 441 | 675 | 676 => StatusCode::BAD_REQUEST,
            46 | 47 | 50 | 56 | 60 | 63 | 73 | 78 | 81 | 115 | 152 | 336 | 511 => {
                StatusCode::NOT_FOUND
            }
            159 => StatusCode::REQUEST_TIMEOUT,
            381 => StatusCode::LENGTH_REQUIRED,
            229 => StatusCode::PAYLOAD_TOO_LARGE,
            779 => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            48 => StatusCode::NOT_IMPLEMENTED,
            76 | 202 | 209 | 439 => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Exception {}

fn leading_code(text: &str) -> Option<u32> {
    let (digits, _) = text.strip_prefix("Code: ")?.split_once('.')?;
    digits.parse().ok()
}

/// The engine names its version in some texts and not in others.
fn without_version(text: &str) -> &str {
    match text.rfind(" (version ") {
        Some(at) if text.ends_with(')') => &text[..at],
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_text_keeps_its_code_and_gains_the_version_once() {
        for text in [
            "Code: 60. DB::Exception: Table d.t does not exist. (UNKNOWN_TABLE)",
            "Code: 60. DB::Exception: Table d.t does not exist. (UNKNOWN_TABLE) (version 26.7.2.1)",
        ] {
            let exception = Exception::from_engine(text);
            assert_eq!(exception.code(), 60);
            assert_eq!(exception.status(), StatusCode::NOT_FOUND);
            assert_eq!(
                exception.body("26.7.2.1"),
                "Code: 60. DB::Exception: Table d.t does not exist. (UNKNOWN_TABLE) \
                 (version 26.7.2.1)\n"
            );
        }
    }

    #[test]
    fn text_without_a_code_is_an_unknown_exception() {
        let exception = Exception::from_engine("it broke (version of events)\n");
        assert_eq!(exception.code(), 1002);
        assert_eq!(exception.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(
            exception.body("1"),
            "Code: 1002. DB::Exception: it broke. (UNKNOWN_EXCEPTION) (version 1)\n"
        );
    }

    #[test]
    fn the_first_code_counts_even_when_the_message_quotes_another() {
        let text =
            "Code: 395. DB::Exception: Code: 62. fence. (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO)";
        assert_eq!(Exception::from_engine(text).code(), 395);
    }
}
