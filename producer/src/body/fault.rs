use serde::Serialize;

/// How many faults are listed; of the others only the number is kept.
const LISTED_FAULTS: usize = 100;

/// Why a body was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// The body as a whole cannot be read.
    Malformed(Fault),
    /// Some of its increments cannot be counted.
    Invalid(Faults),
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
    pub(super) fn push(&mut self, fault: impl FnOnce() -> Fault) {
        if self.listed.len() < LISTED_FAULTS {
            self.listed.push(fault());
        } else {
            self.omitted += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }
}
