use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The next offset to read after the message at `offset`. Every offset that is stored or committed
/// is a next offset; this is the one place that makes it.
#[inline]
pub fn next_offset(offset: i64) -> i64 {
    offset + 1
}

/// Why a delta batch does not follow the one before it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    #[error("hole: offsets {expected}..{from} are missing")]
    Hole { expected: i64, from: i64 },
    #[error("overlap: starts at {from}, but everything before {expected} is already there")]
    Overlap { expected: i64, from: i64 },
    #[error("a link from {from} to {to} runs backwards")]
    Backwards { from: i64, to: i64 },
}

/// Checks that a delta batch of the source offsets [from, to) starts where the chain of batches has
/// got to, which is the next offset `expected`.
pub fn check_chain(expected: i64, from: i64, to: i64) -> Result<(), ChainError> {
    if to < from {
        return Err(ChainError::Backwards { from, to });
    }
    match from.cmp(&expected) {
        Ordering::Less => Err(ChainError::Overlap { expected, from }),
        Ordering::Greater => Err(ChainError::Hole { expected, from }),
        Ordering::Equal => Ok(()),
    }
}

/// How far one partition is stored: everything before these offsets, nothing from them on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredOffsets {
    /// The next offset of `deltas`.
    pub deltas: i64,
    /// The next offset of `increments`, which those deltas are of.
    pub increments: i64,
}

/// For each partition the next offset, everything before it included. Its text is
/// `partition:offset`, joined by commas, as the gateway answers and the reader accepts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position(BTreeMap<i32, i64>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a position: expected partition:offset pairs joined by commas, such as 0:1041,3:88"
)]
pub struct PositionParseError(pub String);

impl Position {
    pub fn get(&self, partition: i32) -> Option<i64> {
        self.0.get(&partition).copied()
    }

    /// Moves `partition` forward to `next`; never back.
    pub fn advance(&mut self, partition: i32, next: i64) {
        let at = self.0.entry(partition).or_insert(next);
        *at = (*at).max(next);
    }

    /// Whether everything before `other` is before this position too.
    pub fn includes(&self, other: &Position) -> bool {
        other.0.iter().all(|(p, next)| *next == 0 || self.get(*p).is_some_and(|have| have >= *next))
    }

    pub fn iter(&self) -> impl Iterator<Item = (i32, i64)> + '_ {
        self.0.iter().map(|(p, o)| (*p, *o))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(i32, i64)> for Position {
    fn from_iter<I: IntoIterator<Item = (i32, i64)>>(pairs: I) -> Position {
        let mut position = Position::default();
        for (partition, next) in pairs {
            position.advance(partition, next);
        }
        position
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (partition, next)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{partition}:{next}")?;
        }
        Ok(())
    }
}

impl FromStr for Position {
    type Err = PositionParseError;

    fn from_str(text: &str) -> Result<Position, PositionParseError> {
        if text.is_empty() {
            return Ok(Position::default());
        }
        let pair = |pair: &str| {
            let (partition, next) = pair.split_once(':')?;
            let (partition, next) = (partition.parse::<i32>().ok()?, next.parse::<i64>().ok()?);
            (partition >= 0 && next >= 0).then_some((partition, next))
        };
        text.split(',')
            .map(pair)
            .collect::<Option<Position>>()
            .ok_or_else(|| PositionParseError(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_refuses_holes_and_overlaps() {
        assert_eq!(check_chain(10, 10, 15), Ok(()));
        assert_eq!(check_chain(15, 16, 20), Err(ChainError::Hole { expected: 15, from: 16 }));
        assert_eq!(check_chain(15, 14, 20), Err(ChainError::Overlap { expected: 15, from: 14 }));
        assert_eq!(check_chain(15, 15, 14), Err(ChainError::Backwards { from: 15, to: 14 }));
    }

    #[test]
    fn a_position_reads_as_it_writes() {
        let position: Position = "0:12,3:55".parse().unwrap();
        assert_eq!(position.to_string(), "0:12,3:55");
        assert_eq!(position.get(3), Some(55));
        for bad in ["0", "a:1", "1:-4", "-1:4", "1:2,", "1:2;2:3"] {
            assert_eq!(bad.parse::<Position>(), Err(PositionParseError(bad.into())));
        }
    }

    #[test]
    fn a_position_includes_those_that_it_has_reached() {
        let reached: Position = "0:12,3:55".parse().unwrap();
        let includes = |text: &str| reached.includes(&text.parse().unwrap());
        assert!(includes("0:12"));
        assert!(includes("0:3,3:55"));
        assert!(includes(""));
        assert!(!includes("0:13"));
        assert!(!includes("1:1"));
    }
}
