//! A rejected message as it goes to the topic of rejections: a copy, and in its headers where it
//! came from and why.
//!
//! ```text
//!  tally.reason, .detail, .topic, .partition, .offset
//!  tally.truncated: payload=<bytes> or key=<bytes>,payload=<bytes>, where these were too long;
//!                   batch, where the message is in a batch that was too large to be decompressed
//! ```
//!
//! A log's messages may be longer than a client sends: they were compressed by another, or the
//! topic's limit was raised. What cannot be copied is left out, and says so; the original stays in
//! the log.

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use tally_counts::Reject;
use tally_kafka::{FetchedMessage, MAX_TRANSACTION_MESSAGE_BYTES, Unfit};

use crate::partitions::Rejected;

/// The longest detail: it may quote names, which may be the reason for the rejection.
const DETAIL_BYTES: usize = 512;
/// The most that the headers and the record around key and payload take.
const AROUND_BYTES: usize = 8 << 10;

/// The beginning of a detail, up to what a header has room for.
fn short(mut detail: String) -> String {
    const CUT: &str = "…";
    if detail.len() > DETAIL_BYTES {
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES - CUT.len()));
        detail.push_str(CUT);
    }
    detail
}

/// A message that is rejected, with as much of it as can be copied.
pub(crate) fn rejected(message: &FetchedMessage<'_>, reason: Reject, detail: String) -> Rejected {
    let &FetchedMessage { partition, offset, timestamp_ms, key, payload, unfit, .. } = message;
    let (key, payload, truncated) = match unfit {
        Some(Unfit::BatchTooLarge) => (None, None, Some(String::from("batch"))),
        _ => fitting(key, payload, MAX_TRANSACTION_MESSAGE_BYTES - AROUND_BYTES),
    };
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let (key, payload) = (owned(key), owned(payload));
    let detail = short(detail);
    Rejected { partition, offset, timestamp_ms, reason, detail, key, payload, truncated }
}

/// The message to send to the topic `to`, of one from the topic `from`.
pub(crate) fn record<'a>(
    to: &'a str,
    from: &str,
    rejected: &'a Rejected,
) -> BaseRecord<'a, [u8], [u8]> {
    let (partition, offset) = (rejected.partition.to_string(), rejected.offset.to_string());
    let header = |key, value| Header { key, value: Some(value) };
    let mut headers = OwnedHeaders::new()
        .insert(header("tally.reason", rejected.reason.as_str()))
        .insert(header("tally.detail", &rejected.detail))
        .insert(header("tally.topic", from))
        .insert(header("tally.partition", &partition))
        .insert(header("tally.offset", &offset));
    if let Some(truncated) = &rejected.truncated {
        headers = headers.insert(header("tally.truncated", truncated));
    }
    let mut record = BaseRecord::to(to).headers(headers);
    if let Some(key) = rejected.key.as_deref() {
        record = record.key(key);
    }
    if let Some(payload) = rejected.payload.as_deref() {
        record = record.payload(payload);
    }
    record
}

/// Key and payload as far as they are no longer than `room` together, and the lengths of those left
/// out.
fn fitting<'m>(
    key: Option<&'m [u8]>,
    payload: Option<&'m [u8]>,
    room: usize,
) -> (Option<&'m [u8]>, Option<&'m [u8]>, Option<String>) {
    let bytes = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
    let (key_bytes, payload_bytes) = (bytes(key), bytes(payload));
    if key_bytes + payload_bytes <= room {
        return (key, payload, None);
    }
    if key_bytes <= room {
        (key, None, Some(format!("payload={payload_bytes}")))
    } else {
        (None, None, Some(format!("key={key_bytes},payload={payload_bytes}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let said = |text: &str| Some(text.to_owned());
        let (key, payload): (Option<&[u8]>, Option<&[u8]>) = (Some(b"key"), Some(b"payload"));
        assert_eq!(fitting(key, payload, 10), (key, payload, None));
        assert_eq!(fitting(key, payload, 9), (key, None, said("payload=7")));
        assert_eq!(fitting(key, payload, 2), (None, None, said("key=3,payload=7")));
        assert_eq!(fitting(None, payload, 7), (None, payload, None));
        assert_eq!(fitting(key, None, 3), (key, None, None));
        assert_eq!(fitting(None, payload, 6), (None, None, said("payload=7")));
    }

    proptest! {
        #[test]
        fn a_detail_is_as_it_was_or_cut_between_characters(detail in "[aé€𝄞]{0,600}") {
            let short = short(detail.clone());
            prop_assert!(short.len() <= DETAIL_BYTES);
            if detail.len() <= DETAIL_BYTES {
                prop_assert_eq!(short, detail);
            } else {
                let begin = short.strip_suffix('…').unwrap();
                prop_assert!(detail.starts_with(begin));
                prop_assert!(short.len() > DETAIL_BYTES - 4);
            }
        }
    }
}
