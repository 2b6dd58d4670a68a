//! What became of a request, from what became of each of its messages.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tally_counts::{Position, next_offset};

use super::Error;

const TOO_LONG: KafkaError = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);

/// What became of a message.
#[derive(Clone, Debug)]
pub(super) enum Report {
    Stored {
        partition: i32,
        offset: i64,
    },
    /// Certainly not in the log.
    NotStored(KafkaError),
    /// It may be in the log.
    Unknown(String),
}

/// The position that includes every message, once all are in the log.
pub(super) fn outcome(reports: &[Report]) -> Result<Position, Error> {
    let (mut position, mut stored) = (Position::default(), 0);
    let (mut refusal, mut doubt): (Option<&KafkaError>, Option<&String>) = (None, None);
    for report in reports {
        match report {
            Report::Stored { partition, offset } => {
                stored += 1;
                position.advance(*partition, next_offset(*offset));
            }
            // One that can never be taken says more than one that could not be taken now.
            Report::NotStored(error) if refusal.is_none() || *error == TOO_LONG => {
                refusal = Some(error);
            }
            Report::NotStored(_) => {}
            Report::Unknown(reason) => doubt = doubt.or(Some(reason)),
        }
    }
    match (doubt, refusal) {
        (Some(reason), _) => Err(Error::Unknown { reason: reason.clone() }),
        (None, Some(error)) if stored == 0 => Err(not_stored(error.clone())),
        (None, Some(error)) => {
            let reason = error.to_string();
            Err(Error::InPart { stored, messages: reports.len(), reason })
        }
        (None, None) => Ok(position),
    }
}

pub(super) fn not_stored(error: KafkaError) -> Error {
    match error {
        KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => Error::QueueFull,
        TOO_LONG => Error::TooLongForTopic,
        error => Error::NotDelivered(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMED_OUT: KafkaError = KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut);

    fn stored(partition: i32, offset: i64) -> Report {
        Report::Stored { partition, offset }
    }

    fn unknown(reason: &str) -> Report {
        Report::Unknown(reason.to_owned())
    }

    #[test]
    fn a_request_that_is_in_the_log_as_a_whole_has_a_position() {
        let position = outcome(&[stored(3, 7), stored(0, 0)]).unwrap();
        assert_eq!(position.to_string(), "0:1,3:8");
    }

    #[test]
    fn what_is_in_the_log_nowhere_is_refused_as_one_message_would_be() {
        let (too_long, timed_out) = (Report::NotStored(TOO_LONG), Report::NotStored(TIMED_OUT));
        let refused = outcome(&[timed_out.clone(), timed_out.clone()]).unwrap_err();
        assert!(matches!(refused, Error::NotDelivered(TIMED_OUT)), "{refused:?}");
        for reports in [[too_long.clone(), timed_out.clone()], [timed_out, too_long]] {
            let refused = outcome(&reports).unwrap_err();
            assert!(matches!(refused, Error::TooLongForTopic), "to send it again is no use");
        }
    }

    #[test]
    fn a_part_in_the_log_is_neither_accepted_nor_refused() {
        let refused = Report::NotStored(TOO_LONG);
        for reports in [[stored(0, 4), refused.clone()], [refused.clone(), stored(0, 4)]] {
            let error = outcome(&reports).unwrap_err();
            assert!(matches!(error, Error::InPart { stored: 1, messages: 2, .. }), "{error:?}");
        }
        for other in [stored(0, 4), refused, unknown("second")] {
            let error = outcome(&[unknown("first"), other]).unwrap_err();
            assert!(matches!(&error, Error::Unknown { reason } if reason == "first"), "{error:?}");
        }
    }
}
