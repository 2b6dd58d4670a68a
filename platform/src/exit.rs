//! How the program ends: codes that scripts can tell apart, after sysexits.h where it has one.

use std::fmt;
use std::process::ExitCode;

use crate::causes::with_causes;

/// The counts do not agree with the log.
pub const MISMATCH: u8 = 1;
/// Nothing contradicts the counts, but not all that was committed is proven.
pub const NOT_PROVEN: u8 = 3;
/// The configuration is wrong (`EX_USAGE`).
const CONFIG: u8 = 64;
/// Something that is needed does not answer or is not there (`EX_UNAVAILABLE`): nothing can be said
/// about the counts.
const UNAVAILABLE: u8 = 69;
/// Anything else that failed (`EX_SOFTWARE`).
pub const FAILED: u8 = 70;

/// Why a command failed, for people, and its exit code, for scripts.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    /// The configuration is wrong.
    pub fn config(error: impl Into<anyhow::Error>) -> Failure {
        Failure { code: CONFIG, error: error.into() }
    }

    /// Something that is needed does not answer or is not there.
    pub fn unavailable(error: impl Into<anyhow::Error>) -> Failure {
        Failure { code: UNAVAILABLE, error: error.into() }
    }

    pub fn failed(error: impl Into<anyhow::Error>) -> Failure {
        Failure { code: FAILED, error: error.into() }
    }

    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_causes(self.error.as_ref()))
    }
}
