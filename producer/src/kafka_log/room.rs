use std::sync::Arc;

use rdkafka::ClientConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::message::Message;

/// The limits of librdkafka's queue, with its defaults: messages, and kibibytes. No messages means
/// no limit.
const MESSAGES: (&str, u32) = ("queue.buffering.max.messages", 100_000);
const KIBIBYTES: (&str, u32) = ("queue.buffering.max.kbytes", 1 << 20);

/// Room for messages on their way into the log, taken for all messages of a request or for none:
/// librdkafka itself would take the first ones and refuse the next.
pub(super) struct Room {
    messages: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
}

/// A request's room, until this is dropped.
#[derive(Debug)]
pub(super) struct TakenRoom {
    _messages: OwnedSemaphorePermit,
    _kibibytes: OwnedSemaphorePermit,
}

impl Room {
    /// Takes the place of the limits in `config`, and doubles them there: librdkafka still counts
    /// messages for a moment that it has reported.
    pub(super) fn instead_of_limits(config: &mut ClientConfig) -> Room {
        Room {
            messages: Arc::new(Semaphore::new(take_over(config, MESSAGES))),
            kibibytes: Arc::new(Semaphore::new(take_over(config, KIBIBYTES))),
        }
    }

    /// Room for all the messages; `None` if there is too little.
    pub(super) fn take(&self, messages: &[Message]) -> Option<TakenRoom> {
        let count = u32::try_from(messages.len()).ok()?;
        let bytes: usize = messages.iter().map(Message::bytes).sum();
        let kibibytes = u32::try_from(bytes.div_ceil(1024)).ok()?;
        Some(TakenRoom {
            _messages: Arc::clone(&self.messages).try_acquire_many_owned(count).ok()?,
            _kibibytes: Arc::clone(&self.kibibytes).try_acquire_many_owned(kibibytes).ok()?,
        })
    }
}

fn take_over(config: &mut ClientConfig, (name, default): (&str, u32)) -> usize {
    let limit = match config.get(name).map(str::parse) {
        None => default,
        Some(Ok(limit)) => limit,
        // The client will not be made with it, and its error names the property.
        Some(Err(_)) => return Semaphore::MAX_PERMITS,
    };
    if limit == 0 {
        return Semaphore::MAX_PERMITS;
    }
    config.set(name, limit.saturating_mul(2).min(i32::MAX.cast_unsigned()).to_string());
    usize::try_from(limit).expect("a usize has 32 bits at least").min(Semaphore::MAX_PERMITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Destination;

    fn messages(count: usize, bytes: usize) -> Vec<Message> {
        let message =
            || Message { destination: Destination::Any, payload: vec![0; bytes], increments: 1 };
        std::iter::repeat_with(message).take(count).collect()
    }

    #[test]
    fn there_is_room_for_all_messages_of_a_request_or_for_none() {
        let mut config = ClientConfig::new();
        config.set(MESSAGES.0, "5").set(KIBIBYTES.0, "8");
        let room = Room::instead_of_limits(&mut config);
        assert_eq!([config.get(MESSAGES.0), config.get(KIBIBYTES.0)], [Some("10"), Some("16")]);
        let first = room.take(&messages(3, 100)).unwrap();
        assert!(room.take(&messages(3, 100)).is_none());
        let second = room.take(&messages(2, 3000)).unwrap();
        drop(first);
        assert!(room.take(&messages(1, 3000)).is_none(), "two of eight kibibytes are left");
        drop(second);
        room.take(&messages(5, 1638)).unwrap();
    }

    #[test]
    fn without_settings_the_limits_are_librdkafkas_own() {
        let mut config = ClientConfig::new();
        let room = Room::instead_of_limits(&mut config);
        assert_eq!(room.messages.available_permits(), 100_000);
        assert_eq!(room.kibibytes.available_permits(), 1 << 20);
        config.set(MESSAGES.0, "0");
        let room = Room::instead_of_limits(&mut config);
        assert_eq!(room.messages.available_permits(), Semaphore::MAX_PERMITS);
        assert_eq!(config.get(MESSAGES.0), Some("0"));
    }
}
