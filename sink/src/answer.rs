//! What a store's answer to an insert means for the next one.
//!
//! ```text
//!  status, exception code, body ──► nothing wrong: stored
//!                                   Failure ──► Fence       the ledger is elsewhere
//!                                               Uncertain   in or not: send it again soon
//!                                               Overloaded  send it again, but give the store time
//!                                               Unfit       send it again now and then: somebody must mend the store
//! ```
//!
//! The block is sent again in every class, so a wrong class costs time and never a count.

use std::fmt;

/// The beginning of an exception's text, which is part of ClickHouse's protocol: `Code: 395.
/// DB::Exception: …`.
const EXCEPTION: &str = "Code: ";
/// A reason is for logs and health: what is longer is cut.
const MAX_REASON: usize = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Fence,
    Uncertain,
    Overloaded,
    Unfit,
}

impl Class {
    /// As the metrics call it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Class::Fence => "refused",
            Class::Uncertain => "uncertain",
            Class::Overloaded => "overloaded",
            Class::Unfit => "unfit",
        }
    }

    /// By the codes of ClickHouse's `ErrorCodes.cpp`; one that is not here is uncertain.
    fn of_code(code: u32) -> Class {
        match code {
            // FUNCTION_THROW_IF_VALUE_IS_NON_ZERO.
            395 => Class::Fence,
            // TIMEOUT_EXCEEDED, TOO_SLOW, CANNOT_ALLOCATE_MEMORY, TOO_MANY_SIMULTANEOUS_QUERIES,
            // NO_FREE_CONNECTION.
            159 | 160 | 173 | 202 | 203 => Class::Overloaded,
            // MEMORY_LIMIT_EXCEEDED, TABLE_IS_READ_ONLY, NOT_ENOUGH_SPACE, TOO_MANY_PARTS,
            // CANNOT_SCHEDULE_TASK, SERVER_OVERLOADED.
            241 | 242 | 243 | 252 | 439 | 745 => Class::Overloaded,
            // QUOTA_EXCEEDED.
            201 => Class::Overloaded,
            // Columns, identifiers, types, syntax: the table is not the one that `tally init`
            // makes.
            8 | 10 | 16 | 20 | 36 | 43 | 44 | 46 | 47 | 48 | 53 | 62 | 70 => Class::Unfit,
            // UNKNOWN_TABLE, UNKNOWN_DATABASE, UNKNOWN_SETTING, SUPPORT_IS_DISABLED,
            // DEDUPLICATION_IS_NOT_POSSIBLE.
            60 | 81 | 115 | 344 | 764 => Class::Unfit,
            // READONLY, SETTING_CONSTRAINT_VIOLATION.
            164 | 452 => Class::Unfit,
            // Who may do what: unknown users, wrong passwords, addresses that may not,
            // ACCESS_DENIED, AUTHENTICATION_FAILED.
            192..=195 | 497 | 516 => Class::Unfit,
            _ => Class::Uncertain,
        }
    }

    /// Of an answer that is not ClickHouse's own, but that of something between.
    fn of_status(status: u16) -> Class {
        match status {
            401 | 403 | 407 => Class::Unfit,
            429 | 503 | 507 => Class::Overloaded,
            _ => Class::Uncertain,
        }
    }
}

/// Why an insert is not known to be stored.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Failure {
    pub(crate) class: Class,
    pub(crate) reason: String,
}

impl Failure {
    /// No whole answer came.
    pub(crate) fn unanswered(reason: impl fmt::Display) -> Failure {
        Failure { class: Class::Uncertain, reason: reason.to_string() }
    }
}

/// An insert's answer: only 200 with no exception anywhere and nothing in its body says that the
/// block is stored. A server that fails after it has sent its headers, and a proxy, may say so in
/// the body alone.
pub(crate) fn judge(status: u16, exception_code: Option<u32>, body: &[u8]) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    if status == 200 && exception_code.is_none() && text.is_empty() {
        return Ok(());
    }
    let class = match exception_code.or_else(|| code_in(text)) {
        Some(code) => Class::of_code(code),
        None => Class::of_status(status),
    };
    let reason = match (text, exception_code) {
        ("", Some(code)) => format!("the store answers {status} with the exception {code}"),
        ("", None) => format!("the store answers {status}"),
        (text, _) if status == 200 => format!("the store answers {status}, but says {}", cut(text)),
        (text, _) => cut(text).to_owned(),
    };
    Err(Failure { class, reason })
}

/// The code of the first exception in a body, wherever it begins: newer servers put a tag before
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

    fn class(status: u16, code: Option<u32>, body: &str) -> Option<Class> {
        judge(status, code, body.as_bytes()).err().map(|failure| failure.class)
    }

    #[test]
    fn only_an_empty_answer_without_an_exception_means_stored() {
        assert_eq!(class(200, None, ""), None);
        assert_eq!(class(200, None, "\n"), None);
        assert_eq!(class(200, None, "Ok."), Some(Class::Uncertain));
        assert_eq!(class(200, Some(241), ""), Some(Class::Overloaded));
        assert_eq!(class(204, None, ""), Some(Class::Uncertain));
        assert_eq!(class(502, None, "<html>Bad Gateway</html>"), Some(Class::Uncertain));
        assert_eq!(class(503, None, ""), Some(Class::Overloaded));
    }

    #[test]
    fn an_exception_is_found_wherever_the_body_has_it() {
        let plain = "Code: 241. DB::Exception: Memory limit (total) exceeded. (MEMORY_LIMIT_EXCEEDED) (version 26.7.2.1)\n";
        let tagged = "\r\n__exception__\r\nrnywyenlaeqynhmu\r\nCode: 252. DB::Exception: Too many parts. (TOO_MANY_PARTS) \
                      (version 26.7.2.1 (official build))\n142 rnywyenlaeqynhmu\r\n__exception__\r\n";
        assert_eq!(class(200, None, plain), Some(Class::Overloaded));
        assert_eq!(class(200, None, tagged), Some(Class::Overloaded));
        assert_eq!(class(500, None, plain), Some(Class::Overloaded));
        assert_eq!(class(200, None, "Code: 241"), Some(Class::Uncertain));
    }

    #[test]
    fn the_first_exception_counts_and_the_header_before_it() {
        let fence = "Code: 395. DB::Exception: the ledger is not at 5: Code: 60. DB::Exception: while executing";
        assert_eq!(class(500, None, fence), Some(Class::Fence));
        assert_eq!(class(500, Some(60), fence), Some(Class::Unfit));
        assert_eq!(class(500, Some(1), fence), Some(Class::Uncertain));
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let failure = judge(500, None, "計".repeat(1_000).as_bytes()).unwrap_err();
        assert_eq!(failure.reason.chars().count(), MAX_REASON);
    }
}
