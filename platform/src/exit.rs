//! How the program ends: codes that scripts can tell apart, after sysexits.h where it has one.

use std::fmt;
use std::process::ExitCode;

/// The counts do not agree with the log.
pub const MISMATCH: u8 = 1;
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

    /// Anything else.
    pub fn failed(error: impl Into<anyhow::Error>) -> Failure {
        Failure { code: FAILED, error: error.into() }
    }

    /// The code that the process exits with.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&with_causes(&self.error))
    }
}

/// The error and its causes, but for those that a message above has said already.
pub fn with_causes(error: &anyhow::Error) -> String {
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn each_cause_is_said_once() {
        let inner = anyhow::anyhow!("address in use");
        let error = inner.context("listen on 127.0.0.1:1: address in use").context("start");
        assert_eq!(with_causes(&error), "start: listen on 127.0.0.1:1: address in use");
        let error = Err::<(), _>(anyhow::anyhow!("address in use"))
            .context("listen on 127.0.0.1:1")
            .unwrap_err();
        assert_eq!(with_causes(&error), "listen on 127.0.0.1:1: address in use");
    }
}
