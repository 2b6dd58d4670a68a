//! What librdkafka knows about a message's being in the log, which its safe wrapper does not tell.

use rdkafka::bindings::{rd_kafka_message_status, rd_kafka_msg_status_t};
use rdkafka::message::BorrowedMessage;

/// Whether a message of a delivery report is certainly not in the log: never sent, or refused by
/// the broker.
pub(super) fn is_ruled_out(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the pointer is valid as long as `message`, which holds the event that the message
    // belongs to; the call only reads.
    let status = unsafe { rd_kafka_message_status(message.ptr()) };
    status == rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}
