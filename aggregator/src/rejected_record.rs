//! A rejected message as it goes to the topic of rejections: a copy, and in its headers where it
//! came from and why.
//!
//! ```text
//!  tally.reason, .detail, .topic, .partition, .offset
//!  tally.truncated: payload=<bytes> or key=<bytes>,payload=<bytes>, where these were too long
//! ```
//!
//! A log's messages may be longer than a client sends: they were compressed by another, or the
//! topic's limit was raised. What cannot be copied is left out, and says so; the original stays in
//! the log.

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use tally_kafka::MAX_TRANSACTION_MESSAGE_BYTES;

use crate::partitions::Rejected;

/// The longest detail: it may quote names, which may be the reason for the rejection.
const DETAIL_BYTES: usize = 512;
/// The most that the headers and the record around key and payload take.
const AROUND_BYTES: usize = 8 << 10;

/// The beginning of a detail, up to what a header has room for.
pub(crate) fn short(mut detail: String) -> String {
    const CUT: &str = "…";
    if detail.len() > DETAIL_BYTES {
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES - CUT.len()));
        detail.push_str(CUT);
    }
    detail
}

/// The message to send to the topic `to`, of one from the topic `from`.
pub(crate) fn record<'a>(
    to: &'a str,
    from: &str,
    rejected: &'a Rejected,
) -> BaseRecord<'a, [u8], [u8]> {
    let (key, payload, truncated) = fitting(rejected, MAX_TRANSACTION_MESSAGE_BYTES - AROUND_BYTES);
    let (partition, offset) = (rejected.partition.to_string(), rejected.offset.to_string());
    let header = |key, value| Header { key, value: Some(value) };
    let mut headers = OwnedHeaders::new()
        .insert(header("tally.reason", rejected.reason.as_str()))
        .insert(header("tally.detail", &rejected.detail))
        .insert(header("tally.topic", from))
        .insert(header("tally.partition", &partition))
        .insert(header("tally.offset", &offset));
    if let Some(truncated) = &truncated {
        headers = headers.insert(header("tally.truncated", truncated));
    }
    let mut record = BaseRecord::to(to).headers(headers);
    if let Some(key) = key {
        record = record.key(key);
    }
    if let Some(payload) = payload {
        record = record.payload(payload);
    }
    record
}

/// Key and payload as far as they are no longer than `room` together, and the lengths of those left
/// out.
fn fitting(rejected: &Rejected, room: usize) -> (Option<&[u8]>, Option<&[u8]>, Option<String>) {
    let (key, payload) = (rejected.key.as_deref(), rejected.payload.as_deref());
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
    use tally_counts::Reject;

    use super::*;

    fn rejected(key: Option<&[u8]>, payload: Option<&[u8]>) -> Rejected {
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        let (key, payload) = (owned(key), owned(payload));
        Rejected {
            partition: 0,
            offset: 0,
            reason: Reject::NotFramed,
            detail: String::new(),
            key,
            payload,
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let said = |text: &str| Some(text.to_owned());
        let (key, payload): (Option<&[u8]>, Option<&[u8]>) = (Some(b"key"), Some(b"payload"));
        let both = rejected(key, payload);
        assert_eq!(fitting(&both, 10), (key, payload, None));
        assert_eq!(fitting(&both, 9), (key, None, said("payload=7")));
        assert_eq!(fitting(&both, 2), (None, None, said("key=3,payload=7")));
        assert_eq!(fitting(&rejected(None, payload), 7), (None, payload, None));
        assert_eq!(fitting(&rejected(key, None), 3), (key, None, None));
        assert_eq!(fitting(&rejected(None, payload), 6), (None, None, said("payload=7")));
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
