//! What a topic is right now: its id, its partitions, their first and last offsets.

use std::ffi::{CStr, CString};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::error::{IsError, KafkaError};
use rdkafka::metadata::Metadata;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka_sys as sys;

use crate::lost_brokers;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error("topic {topic} is not there: run `tally init`")]
    Missing { topic: String },
    #[error("describe topic {topic}: {reason}")]
    Unavailable { topic: String, reason: String },
}

impl TopicError {
    fn unavailable(topic: &str, reason: impl ToString) -> TopicError {
        TopicError::Unavailable { topic: topic.to_owned(), reason: reason.to_string() }
    }
}

pub fn partition_count<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
) -> Result<i32, TopicError> {
    let metadata = metadata(client, topic, CALL_TIMEOUT)
        .map_err(|error| TopicError::unavailable(topic, error))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Err(TopicError::Missing { topic: topic.to_owned() });
    };
    match found.error() {
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => {
            Err(TopicError::Missing { topic: topic.to_owned() })
        }
        Some(error) => Err(TopicError::unavailable(topic, KafkaError::MetadataFetch(error.into()))),
        None => {
            Ok(i32::try_from(found.partitions().len()).expect("Kafka counts partitions in 32 bits"))
        }
    }
}

/// What a broker says of the topic. A client that gets no answer for long is given its brokers
/// again.
pub(crate) fn metadata<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Metadata, KafkaError> {
    let asked = client.fetch_metadata(Some(topic), timeout);
    match &asked {
        Ok(_) => lost_brokers::answered(client),
        Err(_) => lost_brokers::unanswered(client),
    }
    asked
}

/// The low and the high watermark: the first offset that a partition still has, and the next one
/// that it will give. A broker that has just started, or just became the leader, is asked again.
pub fn watermarks<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: i32,
) -> Result<(i64, i64), TopicError> {
    let deadline = Instant::now() + CALL_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.fetch_watermarks(topic, partition, left) {
            Ok(watermarks) => return Ok(watermarks),
            Err(error) if is_between_leaders(&error) && left > ASK_AGAIN => {
                thread::sleep(ASK_AGAIN);
            }
            Err(error) => {
                return Err(TopicError::unavailable(
                    topic,
                    format!("partition {partition}: {error}"),
                ));
            }
        }
    }
}

/// Whether a partition's leader is being elected, or has just been and does not know yet what it
/// has. librdkafka returns these to its caller where it asks for offsets.
fn is_between_leaders(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::OffsetNotAvailable
                | RDKafkaErrorCode::FencedLeaderEpoch
                | RDKafkaErrorCode::UnknownLeaderEpoch
        )
    )
}

/// The high watermark of a partition that the client reads, as a broker last told; `None` where
/// none has. Asks nobody.
pub fn known_end<C: ClientContext>(client: &Client<C>, topic: &str, partition: i32) -> Option<i64> {
    let name = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive, the name ends with a zero, and both numbers are written to
    // before the call returns.
    let error = unsafe {
        sys::rd_kafka_get_watermark_offsets(
            client.native_ptr(),
            name.as_ptr(),
            partition,
            &raw mut low,
            &raw mut high,
        )
    };
    let is_known = error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0;
    is_known.then_some(high)
}

/// The id that Kafka gave the topic when it was made, in base64. Another topic that gets the same
/// name later has another id.
pub fn topic_id<C: ClientContext>(client: &Client<C>, topic: &str) -> Result<String, TopicError> {
    topic_id_within(client, topic, CALL_TIMEOUT)
}

/// As [`topic_id`], for callers that cannot wait long.
pub fn topic_id_within<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<String, TopicError> {
    let asked = describe(client, topic, timeout);
    match &asked {
        Err(TopicError::Unavailable { .. }) => lost_brokers::unanswered(client),
        Ok(_) | Err(TopicError::Missing { .. }) => lost_brokers::answered(client),
    }
    asked
}

fn describe<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<String, TopicError> {
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let name = CString::new(topic).map_err(|error| TopicError::unavailable(topic, error))?;
    // SAFETY: every handle comes from librdkafka, is checked for null where it may be, is used only
    // while its owner (the event, for results) is alive, and is destroyed once by `Owned`.
    unsafe {
        let mut names = [name.as_ptr()];
        let topics = Owned(
            sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
            sys::rd_kafka_TopicCollection_destroy,
        );
        let queue =
            Owned(sys::rd_kafka_queue_new(client.native_ptr()), sys::rd_kafka_queue_destroy);
        sys::rd_kafka_DescribeTopics(client.native_ptr(), topics.0, ptr::null(), queue.0);
        let event = sys::rd_kafka_queue_poll(queue.0, timeout_ms);
        if event.is_null() {
            return Err(TopicError::unavailable(topic, "timed out"));
        }
        let event = Owned(event, sys::rd_kafka_event_destroy);
        let code = sys::rd_kafka_event_error(event.0);
        if code.is_error() {
            return Err(TopicError::unavailable(topic, text(sys::rd_kafka_err2str(code))));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err(TopicError::unavailable(topic, "the answer is not a description"));
        }
        let mut count = 0;
        let described = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if described.is_null() || count != 1 {
            return Err(TopicError::unavailable(topic, format!("{count} topics described")));
        }
        let description = *described;
        let error = sys::rd_kafka_TopicDescription_error(description);
        match sys::rd_kafka_error_code(error) {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => {
                return Err(TopicError::Missing { topic: topic.to_owned() });
            }
            code => return Err(TopicError::unavailable(topic, text(sys::rd_kafka_err2str(code)))),
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(description);
        Ok(text(sys::rd_kafka_Uuid_base64str(id)))
    }
}

/// A handle of librdkafka's and what destroys it.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `Owned` is made only of fresh handles and their own destructor, and is not
        // cloned.
        unsafe { (self.1)(self.0) }
    }
}

/// SAFETY: `text` must be null or a C string that lives as long as the call.
unsafe fn text(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::from("no reason given");
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
