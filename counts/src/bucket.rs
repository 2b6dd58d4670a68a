use std::fmt;

use crate::Reject;

/// The length of a time bucket, in seconds. It divides a day, so that every day is whole buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketWidth(u32);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a bucket of {0} s does not divide a day of 86,400 s")]
pub struct WidthError(pub u32);

impl BucketWidth {
    pub const MINUTE: BucketWidth = BucketWidth(60);

    pub fn from_secs(secs: u32) -> Result<BucketWidth, WidthError> {
        match secs {
            0 => Err(WidthError(secs)),
            _ if 86_400 % secs != 0 => Err(WidthError(secs)),
            _ => Ok(BucketWidth(secs)),
        }
    }

    pub fn as_secs(self) -> u32 {
        self.0
    }

    /// The start, in seconds since 1970, of the bucket that holds the time `at_ms`, which is in
    /// milliseconds since 1970.
    ///
    /// ClickHouse stores it as `DateTime`, 32 bits of seconds, which reach from 1970 to 2106; any
    /// other time is [`Reject::EventTimeOutOfRange`].
    #[inline]
    pub fn bucket(self, at_ms: i64) -> Result<u32, Reject> {
        let secs = at_ms.div_euclid(1000);
        match u32::try_from(secs) {
            Ok(secs) => Ok(secs - secs % self.0),
            Err(_) => Err(Reject::EventTimeOutOfRange),
        }
    }
}

impl fmt::Display for BucketWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_falls_into_the_bucket_that_starts_at_or_before_it() {
        let minute = BucketWidth::MINUTE;
        assert_eq!(minute.bucket(0), Ok(0));
        assert_eq!(minute.bucket(59_999), Ok(0));
        assert_eq!(minute.bucket(60_000), Ok(60));
        assert_eq!(minute.bucket(1_700_000_012_345), Ok(1_699_999_980));
    }

    #[test]
    fn times_that_the_store_cannot_hold_are_rejected() {
        let minute = BucketWidth::MINUTE;
        assert_eq!(minute.bucket(-1), Err(Reject::EventTimeOutOfRange));
        assert_eq!(minute.bucket(i64::MAX), Err(Reject::EventTimeOutOfRange));
        assert_eq!(
            minute.bucket((i64::from(u32::MAX) + 1) * 1000),
            Err(Reject::EventTimeOutOfRange)
        );
        assert!(minute.bucket(i64::from(u32::MAX) * 1000).is_ok());
    }

    #[test]
    fn a_width_divides_the_day() {
        assert_eq!(BucketWidth::from_secs(7), Err(WidthError(7)));
        assert_eq!(BucketWidth::from_secs(0), Err(WidthError(0)));
        assert!(BucketWidth::from_secs(3600).is_ok());
    }
}
