//! What ClickHouse's answer to an insert means for the next one.
//!
//! ```text
//!  status, exception code, body ──► nothing wrong: stored
//!                              └──► InsertFailure, of one of these classes:
//!                                   Fence       the ledger is elsewhere
//!                                   Uncertain   stored or not: send it again soon
//!                                   Overloaded  send it again, but give ClickHouse time
//!                                   Unfit       send it again now and then: somebody must mend
//!                                               ClickHouse
//! ```
//!
//! The block is sent again in every class, so a wrong class costs time and never a count.

use std::fmt;

/// The beginning of an exception's text, which is part of ClickHouse's protocol: `Code: 395.
/// DB::Exception: …`.
const EXCEPTION: &str = "Code: ";
/// The longest reason, in characters: it is for logs and health.
const MAX_REASON: usize = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureClass {
    Fence,
    Uncertain,
    Overloaded,
    Unfit,
}

impl FailureClass {
    /// The value of the metrics' label `outcome`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            FailureClass::Fence => "refused",
            FailureClass::Uncertain => "uncertain",
            FailureClass::Overloaded => "overloaded",
            FailureClass::Unfit => "unfit",
        }
    }

    /// By the codes of ClickHouse's `ErrorCodes.cpp`; one that is not here is uncertain.
    fn of_code(code: u32) -> FailureClass {
        match code {
            // FUNCTION_THROW_IF_VALUE_IS_NON_ZERO.
            395 => FailureClass::Fence,
            // TIMEOUT_EXCEEDED, TOO_SLOW, CANNOT_ALLOCATE_MEMORY, TOO_MANY_SIMULTANEOUS_QUERIES,
            // NO_FREE_CONNECTION.
            159 | 160 | 173 | 202 | 203 => FailureClass::Overloaded,
            // MEMORY_LIMIT_EXCEEDED, TABLE_IS_READ_ONLY, NOT_ENOUGH_SPACE, TOO_MANY_PARTS,
            // CANNOT_SCHEDULE_TASK, SERVER_OVERLOADED.
            241 | 242 | 243 | 252 | 439 | 745 => FailureClass::Overloaded,
            // QUOTA_EXCEEDED.
            201 => FailureClass::Overloaded,
            // Columns, identifiers, types, syntax: the table is not the one that `tally init`
            // makes.
            8 | 10 | 16 | 20 | 36 | 43 | 44 | 46 | 47 | 48 | 53 | 62 | 70 => FailureClass::Unfit,
            // UNKNOWN_TABLE, UNKNOWN_DATABASE, UNKNOWN_SETTING, SUPPORT_IS_DISABLED,
            // DEDUPLICATION_IS_NOT_POSSIBLE.
            60 | 81 | 115 | 344 | 764 => FailureClass::Unfit,
            // READONLY, SETTING_CONSTRAINT_VIOLATION.
            164 | 452 => FailureClass::Unfit,
            // Who may do what: unknown users, wrong passwords, addresses that may not,
            // ACCESS_DENIED, AUTHENTICATION_FAILED.
            192..=195 | 497 | 516 => FailureClass::Unfit,
            _ => FailureClass::Uncertain,
        }
    }

    /// The class of an answer without an exception, which a proxy between may have given.
    fn of_status(status: u16) -> FailureClass {
        match status {
            401 | 403 | 407 => FailureClass::Unfit,
            429 | 503 | 507 => FailureClass::Overloaded,
            _ => FailureClass::Uncertain,
        }
    }
}

/// Why an insert is not known to be stored.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct InsertFailure {
    pub(crate) class: FailureClass,
    pub(crate) reason: String,
}

impl InsertFailure {
    /// The failure of an insert that no whole answer came to.
    pub(crate) fn unanswered(reason: impl fmt::Display) -> InsertFailure {
        InsertFailure { class: FailureClass::Uncertain, reason: reason.to_string() }
    }
}

/// Judges an insert's answer. Only status 200, no exception anywhere and an empty body mean that
/// the block is stored: a server that fails after it has sent its headers, and a proxy, may say so
/// in the body alone.
pub(crate) fn judge(
    status: u16,
    exception_code: Option<u32>,
    body: &[u8],
) -> Result<(), InsertFailure> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    if status == 200 && exception_code.is_none() && text.is_empty() {
        return Ok(());
    }
    let class = match exception_code.or_else(|| code_in(text)) {
        Some(code) => FailureClass::of_code(code),
        None => FailureClass::of_status(status),
    };
    let reason = match (text, exception_code) {
        ("", Some(code)) => {
            format!("ClickHouse answers with status {status} with the exception {code}")
        }
        ("", None) => format!("ClickHouse answers with status {status}"),
        (text, _) if status == 200 => {
            format!("ClickHouse answers with status {status}, but says {}", cut(text))
        }
        (text, _) => cut(text).to_owned(),
    };
    Err(InsertFailure { class, reason })
}

/// The code of the first exception in a body. It may begin anywhere: newer servers put a tag before
/// it.
fn code_in(text: &str) -> Option<u32> {
    text.match_indices(EXCEPTION).find_map(|(at, _)| {
        let (digits, rest) = text[at + EXCEPTION.len()..].split_once('.')?;
        rest.trim_start().starts_with("DB::").then(|| digits.parse().ok())?
    })
}

fn cut(text: &str) -> &str {
    match text.char_indices().nth(MAX_REASON) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(status: u16, code: Option<u32>, body: &str) -> Option<FailureClass> {
        judge(status, code, body.as_bytes()).err().map(|failure| failure.class)
    }

    #[test]
    fn only_an_empty_answer_without_an_exception_means_stored() {
        assert_eq!(class(200, None, ""), None);
        assert_eq!(class(200, None, "\n"), None);
        assert_eq!(class(200, None, "Ok."), Some(FailureClass::Uncertain));
        assert_eq!(class(200, Some(241), ""), Some(FailureClass::Overloaded));
        assert_eq!(class(204, None, ""), Some(FailureClass::Uncertain));
        assert_eq!(class(502, None, "<html>Bad Gateway</html>"), Some(FailureClass::Uncertain));
        assert_eq!(class(503, None, ""), Some(FailureClass::Overloaded));
    }

    #[test]
    fn an_exception_is_found_wherever_the_body_has_it() {
        let plain = "Code: 241. DB::Exception: Memory limit (total) exceeded. \
                     (MEMORY_LIMIT_EXCEEDED) (version 26.7.2.1)\n";
        let tagged = "\r\n__exception__\r\nrnywyenlaeqynhmu\r\n\
                      Code: 252. DB::Exception: Too many parts. (TOO_MANY_PARTS) \
                      (version 26.7.2.1 (official build))\n\
                      142 rnywyenlaeqynhmu\r\n__exception__\r\n";
        assert_eq!(class(200, None, plain), Some(FailureClass::Overloaded));
        assert_eq!(class(200, None, tagged), Some(FailureClass::Overloaded));
        assert_eq!(class(500, None, plain), Some(FailureClass::Overloaded));
        assert_eq!(class(200, None, "Code: 241"), Some(FailureClass::Uncertain));
    }

    #[test]
    fn the_first_exception_counts_and_the_header_before_it() {
        let fence = "Code: 395. DB::Exception: the ledger is not at 5: \
                     Code: 60. DB::Exception: while executing";
        assert_eq!(class(500, None, fence), Some(FailureClass::Fence));
        assert_eq!(class(500, Some(60), fence), Some(FailureClass::Unfit));
        assert_eq!(class(500, Some(1), fence), Some(FailureClass::Uncertain));
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let failure = judge(500, None, "計".repeat(1_000).as_bytes()).unwrap_err();
        assert_eq!(failure.reason.chars().count(), MAX_REASON);
    }
}
